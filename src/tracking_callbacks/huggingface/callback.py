"""``MLflowTrainerCallback``: from the hooks of Hugging Face's ``Trainer`` to the verbs of a run."""

# ruff: noqa: ARG002 - the hooks have Trainer's signature
from __future__ import annotations

import contextlib
import functools
import glob
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tracking_callbacks.attach import Attachment, address_of, run_key_at
from tracking_callbacks.errors import ConfigError, MetricValueError, TrackingError
from tracking_callbacks.guard import never_in_the_way
from tracking_callbacks.huggingface.classification import claim_report
from tracking_callbacks.huggingface.inputs import log_dataset_of
from tracking_callbacks.huggingface.metrics import evaluation_prefix, grouped
from tracking_callbacks.huggingface.model import ModelForm, check_choice, choose_form, processor_of, save_mlmodel
from tracking_callbacks.huggingface.params import Description, describe, describe_search
from tracking_callbacks.run import Run
from tracking_callbacks.tracker import MLflowTracker
from tracking_callbacks.values import check_aliases, check_model_name, safe_name, to_scalar

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MLflowTrainerCallback"]

Hook = TypeVar("Hook", bound=Callable[..., None])

logger = logging.getLogger("tracking_callbacks")

STATE_KEY = "tracking_callbacks"  # in TrainerState.stateful_callbacks, and so in every checkpoint
SUMMARY_KEY = "total_flos"  # in the summary at the end of a training, in no other log
MODEL_ERROR_TAG = "tracking_callbacks.model_error"


def on_main_process(hook: Hook) -> Hook:
    """Run a hook in the one process that writes, and let no fault of it reach the training."""

    @never_in_the_way(default=None)
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

    Nothing starts before the first training event, and no tracking fault reaches the training. In
    ``Trainer.hyperparameter_search`` every trial is a run, nested under one of the search; none of them is
    registered. A copy, or one that was pickled, begins runs of its own.

    Args:
        tracker: Where runs go; None stands for ``MLflowTracker()``.
        run_name: Name of the run; by default ``TrainingArguments.run_name``, else MLflow makes one up.
        tags: Tags of the run, and of the model and its registered version.
        log_model: How the model is saved at the end of training. ``"adapter"``: the PEFT adapter with a
            reference to its base model; ``"merged"``: the base model with the adapter merged in; ``"full"``:
            a whole model, which for a PEFT model is the merged one; ``"auto"``: the adapter where that alone
            loads back anywhere, else merged, and full without PEFT; False: not at all.
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        log_checkpoints: Log every checkpoint that ``Trainer`` saves, as ``checkpoints/checkpoint-<step>``.

    Raises:
        ConfigError: `log_model`, `registered_model_name` or `aliases` cannot be used. That `log_model` does
            not suit the model is raised at the beginning of training, before the first step.
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
        log_checkpoints: bool = False,
    ) -> None:
        check_choice(log_model)
        self.log_model = log_model
        self.registered_model_name = registered_model_name
        self.aliases = check_aliases(aliases)
        if registered_model_name is not None:
            check_model_name(registered_model_name, "registered_model_name")
        elif self.aliases:
            raise ConfigError(f"aliases: {self.aliases!r} need a registered_model_name", setting="aliases")
        self.log_checkpoints = log_checkpoints
        self._tracker = tracker
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._attachment: Attachment | None = None
        self._begun: tuple[int, dict[str, Any] | None] | None = None  # batch size and trial of the last training
        self._attempts = 0
        self._trials = 0
        self._completed = False
        self._skipped: set[str] = set()
        self._reports: Counter[tuple[str, str]] = Counter()
        self._inputs: set[tuple[str, str]] = set()

    @property
    def run(self) -> Run | None:
        """The run that the callback writes to; None before the first training event."""
        return self._attachment.run if self._attachment else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the run behind: it belongs to this process, and to this object."""
        return self.__dict__ | {"_attachment": None}

    # -- hooks ---------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run, or continue it, and log what the training is made of."""
        check_choice(self.log_model, kwargs["model"])  # wrong configuration raises, before the first step
        self._begin(args, state, control, **kwargs)

    # This one is called at every step, with cold caches: each call of a function in it costs three microseconds.
    @never_in_the_way(default=None)
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the values of a training step, an evaluation or the summary."""
        if not state.is_world_process_zero:
            return
        logs = kwargs["logs"]
        if SUMMARY_KEY in logs:
            self._completed = True
        run = self._attachment.run if self._attachment is not None else None
        if run is None:
            run = self._attached(args).run_for_evaluation()
        values = grouped(logs)
        try:
            run.log_metrics(values, state.global_step)
        except MetricValueError:  # one of them is no number: then none is logged
            run.log_metrics(self._numbers(values), state.global_step)

    @on_main_process
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the report behind an evaluation; its numbers have come through `on_log` already."""
        run = self._attached(args).run_for_evaluation()
        self._log_report(run, kwargs["metrics"], state.global_step)
        self._log_input(run, evaluation_prefix(kwargs["metrics"]) or "eval", "evaluation", kwargs)

    @on_main_process
    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any,
        **kwargs: Any,
    ) -> None:
        """Log the numbers of a prediction, which come through no other hook, and the report behind them."""
        run = self._attached(args).run_for_evaluation()
        run.log_metrics(self._numbers(grouped(metrics)), state.global_step)
        self._log_report(run, metrics, state.global_step)
        self._log_input(run, evaluation_prefix(metrics) or "test", "test", kwargs)

    @on_main_process
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the checkpoint that has just been saved, if checkpoints are wanted."""
        run = self.run
        checkpoint = _latest_checkpoint(args, state) if self.log_checkpoints else None
        if run is not None and checkpoint is not None:
            run.log_checkpoint(checkpoint)

    @on_main_process
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and register the model, and end the run."""
        attachment = self._attached(args)
        run = attachment.run
        if run is None or not attachment.training:
            return
        if state.is_hyper_param_search and not self._completed:  # Trainer calls this hook for a pruned trial too
            run.set_tags({"tracking_callbacks.pruned": "true"})
            attachment.end_training("KILLED")
            return
        run.draw("learning_curves")
        if self._wants_model(run):
            self._save_model(run, args, state, kwargs)
        attachment.end_training()

    # -- what they do --------------------------------------------------------------------------------------

    def _attached(self, args: TrainingArguments) -> Attachment:
        if self._attachment is None:
            # Older versions of transformers give the output folder as the name.
            trainer_name = args.run_name if args.run_name != args.output_dir else None
            self._attachment = Attachment(self._tracker, run_name=self._run_name or trainer_name, tags=self._tags)
        return self._attachment

    @on_main_process
    def _begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        attachment = self._attached(args)
        self._completed = False
        if self._is_retry(args, state) and attachment.training and attachment.run is not None:
            self._attempts += 1
            attachment.run.set_tags(
                {
                    "tracking_callbacks.attempts": self._attempts,
                    "tracking_callbacks.train_batch_size": state.train_batch_size,
                }
            )
            _carry(state, attachment.run)
            return
        self._attempts = 1
        if "mlflow" in (args.report_to or ()):
            logger.warning(
                "report_to names 'mlflow' too: transformers' own callback makes a run beside this one; "
                "take it out of TrainingArguments(report_to=...)"
            )
        if state.is_hyper_param_search:
            run = self._begin_trial(attachment, args, state)
        else:
            resume_key = run_key_at(_carried(state).get(STATE_KEY), attachment.settings, owner="the checkpoint")
            run = attachment.begin_training(resume_key=resume_key)
        _carry(state, run)
        if run.settings.log_everything:
            run.set_tags(_tags(model))
        run.log_params({f"trial.{key}": value for key, value in (state.trial_params or {}).items()})
        _log_description(run, describe(args, model))
        self._log_input(run, "train", "training", kwargs)

    def _begin_trial(self, attachment: Attachment, args: TrainingArguments, state: TrainerState) -> Run:
        number = 0 if attachment.search is None else self._trials
        run, search = attachment.begin_trial(state.trial_name or f"trial-{number}")
        if number == 0:
            if search.settings.log_everything:
                search.set_tags({"framework": "transformers"})
            _log_description(search, describe_search(args, varied=state.trial_params or {}))
        self._trials = number + 1
        search.set_tags({"tracking_callbacks.trials": self._trials})
        return run

    def _is_retry(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Return whether ``auto_find_batch_size`` has begun the same training again, with a smaller batch."""
        before, self._begun = self._begun, (state.train_batch_size or 0, state.trial_params)
        smaller = before is not None and self._begun[0] < before[0] and self._begun[1] == before[1]
        return args.auto_find_batch_size and smaller

    def _numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return those of `values` that are numbers; the first time that another comes is a warning."""
        numbers = {}
        for key, value in values.items():
            try:
                numbers[key] = to_scalar(key, value)
            except MetricValueError as error:
                if key not in self._skipped:
                    self._skipped.add(key)
                    logger.warning("%s; it is left out of the run", error)
        return numbers

    def _log_input(self, run: Run, role: str, context: str, given: Mapping[str, Any]) -> None:
        """Record the dataset of a training or an evaluation, the first time that it is used for this run."""
        role = safe_name(role).replace("/", "_")
        if (run.run_key, role) not in self._inputs:
            self._inputs.add((run.run_key, role))
            dataloader = given.get("train_dataloader" if context == "training" else "eval_dataloader")
            tokenizer, model = given.get("processing_class"), given.get("model")
            log_dataset_of(run, dataloader, role, context=context, tokenizer=tokenizer, model=model)

    def _log_report(self, run: Run, metrics: Mapping[str, Any], step: int) -> None:
        prefix = evaluation_prefix(metrics) or ""
        report = claim_report(metrics, prefix)
        if report is None:
            return
        evaluated = safe_name(prefix or "unnamed").replace("/", "_")
        folder = f"evaluation/{evaluated}/step-{step}"
        self._reports[run.run_key, folder] += 1
        if (count := self._reports[run.run_key, folder]) > 1:  # not over the report of an earlier one at this step
            folder += f"-{count}"
        counts = {"labels": report.labels, "matrix": report.matrix}
        if run.settings.log_everything:
            run.log_text(report.table, f"{folder}/classification_report.txt")
            run.log_dict(counts, f"{folder}/confusion_matrix.json")
        run.draw("confusion_matrix", folder, json.dumps(counts), note=f"{prefix or 'evaluation'}, step {step}")

    def _wants_model(self, run: Run) -> bool:
        unasked = self.log_model in ("auto", True) and self.registered_model_name is None
        return self.log_model is not False and (run.settings.log_everything or not unasked)

    @never_in_the_way(default=None)
    def _save_model(self, run: Run, args: TrainingArguments, state: TrainerState, context: Mapping[str, Any]) -> None:
        model = context["model"]
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(_tag_model_error, run))
            if args.fsdp or (args.deepspeed and args.hf_deepspeed_config.is_zero3()):
                raise TrackingError("the weights are spread over processes; save them with trainer.save_model()")
            chosen = choose_form(str(self.log_model), model)
            if chosen.notice:
                # An adapter's is a limit of what was asked for, a merged model's only says why it is one.
                level = logging.WARNING if chosen.form is ModelForm.ADAPTER else logging.INFO
                logger.log(level, "model: %s", chosen.notice)
            processor = processor_of(context.get("processing_class"), context.get("train_dataloader"), model)
            _output_folder(args).mkdir(parents=True, exist_ok=True)  # on a disk that has room for checkpoints
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".mlmodel-", dir=_output_folder(args)))
            save_mlmodel(model, processor, Path(folder, "model"), chosen)
            registered = None if state.is_hyper_param_search else self.registered_model_name
            run.log_model(
                Path(folder, "model"),
                registered_model_name=registered,
                aliases=self.aliases if registered else (),
                step=_model_step(args, state),
                tags=self._tags
                | {"form": str(chosen.form)}
                | ({"form_notice": chosen.notice} if chosen.notice else {}),
            )


def _output_folder(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".")


def _latest_checkpoint(args: TrainingArguments, state: TrainerState) -> Path | None:
    """Return the checkpoint of this step, or None where ``save_total_limit`` has taken it already."""
    name = f"checkpoint-{state.global_step}"
    # A search gives each of its trials a folder, ``run-<number>`` or by the user's ``hp_name``.
    trial = glob.escape(state.trial_name) if state.trial_name else "run-*"
    pattern = f"{trial}/{name}" if state.is_hyper_param_search else name
    found = [folder for folder in _output_folder(args).glob(pattern) if folder.is_dir()]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _log_description(run: Run, description: Description) -> None:
    run.log_params(description.params)
    for name, document in description.documents.items() if run.settings.log_config else ():
        run.log_dict(document, f"config/{name}")


def _carry(state: TrainerState, run: Run) -> None:
    """Let every checkpoint of this training say which run it belongs to."""
    _carried(state)[STATE_KEY] = address_of(run)


def _carried(state: TrainerState) -> dict[str, Any]:
    """Return what checkpoints carry for callbacks; a dict, whatever its annotation in transformers says."""
    return cast(dict[str, Any], state.stateful_callbacks)


def _tags(model: nn.Module) -> dict[str, str]:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return {"framework": "transformers", "framework_version": transformers.__version__} | (
        {"model_type": model_type} if model_type else {}
    )


def _model_step(args: TrainingArguments, state: TrainerState) -> int:
    best = state.best_global_step if args.load_best_model_at_end else None
    return best or state.global_step


def _tag_model_error(
    run: Run, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
) -> None:
    if kind is not None:
        run.set_tags({MODEL_ERROR_TAG: f"{kind.__name__}: {error}"})
