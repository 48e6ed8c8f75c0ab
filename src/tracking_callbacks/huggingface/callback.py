"""``MLflowTrainerCallback``: from the hooks of Hugging Face's ``Trainer`` to the verbs of a run."""

# ruff: noqa: ARG002 - the hooks have Trainer's signature
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, cast

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tracking_callbacks._callbacks.callback_run import CallbackRun, check_tracker
from tracking_callbacks._callbacks.description import (
    evaluation_folder,
    framework_tags,
    log_description,
    tag_framework,
)
from tracking_callbacks._callbacks.trained_model import ModelLogger, PreparedModel, check_code_paths
from tracking_callbacks._callbacks.training_watch import current_call, watch_method
from tracking_callbacks._journal.records import PRUNED_TAG, TRIALS_TAG
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.conversion import to_scalar
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError, MetricValueError
from tracking_callbacks.huggingface.best_trial import log_best_trial
from tracking_callbacks.huggingface.evaluations import EvaluationLogger
from tracking_callbacks.huggingface.explanation import log_explanation
from tracking_callbacks.huggingface.forms import check_choice
from tracking_callbacks.huggingface.metric_names import evaluation_prefix, grouped
from tracking_callbacks.huggingface.params import config_of, describe, describe_search
from tracking_callbacks.huggingface.ranks import FurtherNode, publish_run, watch_rank
from tracking_callbacks.huggingface.save_plan import announce_limits, is_module, prepare_model, unwrapped
from tracking_callbacks.huggingface.sharded import gathered, is_sharded
from tracking_callbacks.huggingface.trainer_state import (
    latest_checkpoint,
    model_step,
    noted_run_key,
    write_run_reference,
)
from tracking_callbacks.settings import is_switched_on

__all__ = ["MLflowTrainerCallback"]

Hook = TypeVar("Hook", bound=Callable[..., None])

logger = logging.getLogger(__name__)

LOG_CHECKPOINTS_VARIABLE = "HF_MLFLOW_LOG_ARTIFACTS"  # of transformers' own callback
_SEARCH = "hyperparameter_search"
_AS_GIVEN: dict[str, Any] = {}
SUMMARY_KEY = "total_flos"  # only the summary at the end of training has it


def on_main_process(hook: Hook, *, begins: bool = False) -> Hook:
    """Run a hook in the one process that writes, and keep its faults away from training."""

    @never_in_the_way(default=None, begins=begins)
    @functools.wraps(hook)
    def hook_on_main_process(
        self: MLflowTrainerCallback,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            hook(self, args, state, control, **kwargs)

    return cast(Hook, hook_on_main_process)


class MLflowTrainerCallback(TrainerCallback):
    """Tracks a ``Trainer``: params, metrics, configuration and the trained model, in one truthful MLflow run.

    Nothing starts before the first training event, and no tracking fault reaches training. In
    ``Trainer.hyperparameter_search``, and in a study of Optuna, every trial is a run, nested under one of the search;
    none of them is registered. A copied or unpickled callback begins new runs.

    Args:
        tracker: Where runs go; None means ``MLflowTracker()``.
        run_name: Name of the run; by default ``TrainingArguments.run_name``, else MLflow makes one up.
        tags: Tags of the run, and of the model and its registered version.
        log_model: How the model is saved at the end of training. ``"adapter"``: the PEFT adapter with a
            reference to its base model; ``"merged"``: the base model with the adapter merged in; ``"full"``:
            a whole model, which for a PEFT model is the merged one; ``"auto"``: the adapter where that alone
            loads back anywhere, else merged, and full without PEFT; False: not at all.
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        promote: Let an alias move to the new version only if it is better: ``Promotion("champion", by="eval/f1")``.
            An evaluation after training counts too.
        code_paths: Files and folders with your own code that the model needs to be loaded; by default those below the
            project root that define the classes of the model and its tokenizer.
        register_trials: Register the models of a search's trials too, with their aliases.
        log_checkpoints: Log every checkpoint that ``Trainer`` saves. True: its files, as
            ``checkpoints/checkpoint-<step>``; ``HF_MLFLOW_LOG_ARTIFACTS`` switches that on too. ``"models"``: the model
            at that step as a logged model of the run, linked to its metrics and the dataset behind them; as many stay
            as ``save_total_limit`` says, the best one always.

    Raises:
        ConfigError: An argument is invalid; the message names it and says what was expected. That `log_model` does
            not suit the model is raised at the start of training, before the first step.
    """

    def __init__(
        self,
        tracker: MLflowTracker | None = None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        log_model: str | bool = "auto",
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        promote: Promotion | Mapping[str, Any] | None = None,
        code_paths: Iterable[str] | None = None,
        register_trials: bool = False,
        log_checkpoints: bool | Literal["models"] = False,
    ) -> None:
        check_choice(log_model)
        self.register_trials = register_trials
        self.code_paths = None if code_paths is None else check_code_paths(code_paths)
        _watch_trainers()
        self.log_model = log_model
        self._model_logger = ModelLogger(
            log_model,
            default="auto",
            registered_model_name=registered_model_name,
            aliases=aliases,
            tags=tags or {},
            promote=promote,
        )
        if log_checkpoints not in (True, False, "models"):
            raise ConfigError(
                f"log_checkpoints: expected True, False or 'models', got {log_checkpoints!r}", setting="log_checkpoints"
            )
        self.log_checkpoints = log_checkpoints or is_switched_on(LOG_CHECKPOINTS_VARIABLE)
        self._tracker = check_tracker(tracker)
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._callback_run: CallbackRun | None = None
        self._begun: tuple[int, dict[str, Any] | None] | None = None  # batch size and trial of the last begin
        self._attempts = 0
        self._trials = 0
        self._completed = False
        self._skipped: set[str] = set()
        self._evaluations = EvaluationLogger()
        self._node: FurtherNode | None = None

    @property
    def run(self) -> Run | None:
        """The run that the callback writes to; None before the first training event."""
        return self._callback_run.run if self._callback_run else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the run out: it belongs to this process and to this object."""
        return self.__dict__ | {"_callback_run": None, "_node": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _watch_trainers()  # this may be another process

    # -- hooks ---------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run, or continue it, and log what it trains with."""
        if state.is_world_process_zero:  # wrong configuration raises, before the first step
            check_choice(self.log_model, unwrapped(kwargs["model"]))
            self._attached(args).check_settings()
        else:
            if self._node is not None:  # `auto_find_batch_size` begins anew
                self._node.end()
            self._node = watch_rank(self._tracker, args)
        self._begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the system metrics of a further machine to the run."""
        if self._node is not None:
            self._node.look()

    # Called at every step, with cold caches: each function call in it costs three microseconds.
    @never_in_the_way(default=None)
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the values of a training step, of an evaluation or of the summary."""
        if not state.is_world_process_zero:
            return
        logs = kwargs["logs"]
        if SUMMARY_KEY in logs:
            self._completed = True
        run = self._callback_run.run if self._callback_run is not None else None
        if run is None:
            run = self._attached(args).run_for_evaluation()
        values = grouped(logs)
        try:
            run.log_metrics(values, state.global_step)
        except MetricValueError:  # one of them is not a number, so none was logged
            run.log_metrics(self._numbers(values), state.global_step)

    @on_main_process
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the report behind an evaluation; `on_log` has logged its metrics already."""
        run = self._attached(args).run_for_evaluation()
        self._evaluations.log_report(run, kwargs["metrics"], state.global_step, kwargs)
        self._evaluations.log_input(run, evaluation_prefix(kwargs["metrics"]) or "eval", "evaluation", kwargs)
        run.compare_again(grouped(kwargs["metrics"]))
        run.describe()

    @on_main_process
    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any,
        **kwargs: Any,
    ) -> None:
        """Log the metrics of a prediction, which no other hook receives, and the report behind them."""
        run = self._attached(args).run_for_evaluation()
        run.log_metrics(self._numbers(grouped(metrics)), state.global_step)
        self._evaluations.log_report(run, metrics, state.global_step, kwargs)
        self._evaluations.log_input(run, evaluation_prefix(metrics) or "test", "test", kwargs)
        run.compare_again(grouped(metrics))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the checkpoint that has just been saved, with `log_checkpoints`."""
        if self.log_checkpoints == "models":
            kwargs |= self._whole_model(kwargs)
        self._save(args, state, control, **kwargs)

    @on_main_process
    def _save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        run = self.run
        if run is not None and self.log_checkpoints == "models":
            prepare = functools.partial(self._prepare_model, kwargs, state.global_step)
            best = state.best_global_step if args.metric_for_best_model else None
            self._model_logger.log_checkpoint(run, prepare, keep=args.save_total_limit, best_step=best)
            return
        checkpoint = latest_checkpoint(args, state) if self.log_checkpoints else None
        if run is not None and checkpoint is not None:
            run.log_checkpoint(checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and register the model, and end the run."""
        self._end(args, state, control, **(kwargs | self._whole_model(kwargs)))

    @on_main_process
    def _end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        callback_run = self._attached(args)
        run = callback_run.run
        if run is None or not callback_run.training:
            return
        if state.is_hyper_param_search and not self._completed:  # Trainer calls this hook for a pruned trial too
            run.set_tags({PRUNED_TAG: "true"})
            callback_run.end_training("KILLED")
            return
        run.draw("learning_curves")
        place = evaluation_folder("eval", state.global_step)
        run.record("importance", lambda: log_explanation(run, kwargs, place))
        prepare = functools.partial(self._prepare_model, kwargs, model_step(args, state))
        is_trial = state.is_hyper_param_search or callback_run.in_trial
        log = functools.partial(self._model_logger.log, run, prepare, register=self.register_trials or not is_trial)
        if is_module(kwargs["model"]):
            log()
        else:
            run.postpone(log)
        callback_run.end_training()

    # -- what they do --------------------------------------------------------------------------------------

    def _attached(self, args: TrainingArguments) -> CallbackRun:
        if self._callback_run is None:
            # Older versions of transformers give the output folder as the name.
            trainer_name = getattr(args, "run_name", None)
            trainer_name = trainer_name if trainer_name != getattr(args, "output_dir", None) else None
            self._callback_run = CallbackRun(
                self._tracker,
                run_name=self._run_name or trainer_name,
                tags=self._tags,
                framework=framework_tags("transformers", transformers.__version__),
            )
        return self._callback_run

    @functools.partial(on_main_process, begins=True)
    def _begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        callback_run = self._attached(args)
        self._completed = False
        if self._is_retry(args, state) and callback_run.training and callback_run.run is not None:
            self._attempts += 1
            callback_run.run.set_tags(
                {
                    "tracking_callbacks.attempts": self._attempts,
                    "tracking_callbacks.train_batch_size": state.train_batch_size,
                }
            )
            write_run_reference(state, callback_run.run)
            return
        self._attempts = 1
        if self.run is not None:
            self.run.write_postponed()
        if state.is_hyper_param_search:
            run = self._begin_trial(callback_run, args, state)
        else:
            resume_key = noted_run_key(state, callback_run.settings)
            run = callback_run.begin_training(resume_key=resume_key, at_step=state.global_step or None)
        write_run_reference(state, run)
        publish_run(run)
        self._tag_framework(run, model)
        run.log_params({f"trial.{key}": value for key, value in (state.trial_params or {}).items()})
        self._describe(run, args, model)
        self._log_train_input(run, kwargs)
        run.describe()
        if self._model_logger.wanted_by(run):
            announce_limits(kwargs, str(self.log_model))

    @never_in_the_way
    def _tag_framework(self, run: Run, model: Any) -> None:
        model_type = getattr(config_of(model), "model_type", None)
        tag_framework(run, "transformers", transformers.__version__, model_type=model_type)

    @never_in_the_way
    def _describe(self, run: Run, args: TrainingArguments, model: Any) -> None:
        log_description(run, describe(args, model))

    @never_in_the_way
    def _log_train_input(self, run: Run, given: Mapping[str, Any]) -> None:
        self._evaluations.log_input(run, "train", "training", given)

    def _begin_trial(self, callback_run: CallbackRun, args: TrainingArguments, state: TrainerState) -> Run:
        number = 0 if callback_run.search is None else self._trials
        call = current_call()
        search_call = None if call is None else call.around(_SEARCH)
        run, search = callback_run.begin_trial(state.trial_name or f"trial {number}", search_call)
        if number == 0:
            tag_framework(search, "transformers")
            log_description(search, describe_search(args, varied=state.trial_params or {}))
            if search_call is not None:
                search_call.on_end(lambda _: log_best_trial(search, search_call.result))
        self._trials = number + 1
        search.set_tags({TRIALS_TAG: self._trials})
        return run

    def _is_retry(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Return whether ``auto_find_batch_size`` has restarted the same training with a smaller batch."""
        before, self._begun = self._begun, (state.train_batch_size or 0, state.trial_params)
        smaller = before is not None and self._begun[0] < before[0] and self._begun[1] == before[1]
        return bool(getattr(args, "auto_find_batch_size", False)) and smaller

    def _numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return those of `values` that are numbers, and warn once about each other name."""
        numbers = {}
        for key, value in values.items():
            try:
                numbers[key] = to_scalar(key, value)
            except MetricValueError as error:
                if key not in self._skipped:
                    self._skipped.add(key)
                    logger.warning("%s; it is left out of the run", error)
        return numbers

    @never_in_the_way(default=_AS_GIVEN)
    def _whole_model(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model with all of its weights, if they are spread over processes; each of them takes part."""
        model = unwrapped(given["model"])
        wanted = self.log_model is not False and is_module(model)
        return {"model": gathered(model)} if wanted and is_sharded(model) else {}

    def _prepare_model(self, given: Mapping[str, Any], step: int) -> PreparedModel:
        example = self.run is not None and self.run.settings.record.input_example
        return prepare_model(
            given, step, log_model=str(self.log_model), code_paths=self.code_paths, with_example=example
        )


def _watch_trainers() -> None:
    """See how training and searches end: no hook of ``Trainer`` tells of an exception."""
    # Heavy, and loaded already wherever there is something to train.
    from transformers.trainer import Trainer

    watch_method(Trainer, "train")
    watch_method(Trainer, _SEARCH)
