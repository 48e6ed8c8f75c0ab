"""``MLflowSB3Callback``: turns the hooks of Stable-Baselines3 into calls of a run."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.description import (
    Description,
    evaluation_folder,
    framework_tags,
    log_description,
    tag_framework,
)
from tracking_callbacks._callbacks.trained_model import ModelLogger, PreparedModel, check_code_paths
from tracking_callbacks._callbacks.training_watch import watch_method
from tracking_callbacks._episodes.account import AccountSettings
from tracking_callbacks._episodes.market import Benchmark, check_benchmark
from tracking_callbacks._episodes.market_log import log_market
from tracking_callbacks._episodes.point_budget import StepBudget, WindowClock
from tracking_callbacks._episodes.returns import Returns, check_initial_account, check_returns
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.sb3.arguments import LogModel, check_best_by, check_count, check_log_model, check_periods
from tracking_callbacks.sb3.environments import identity
from tracking_callbacks.sb3.episode_recorder import EpisodeRecorder
from tracking_callbacks.sb3.evaluation import BestAgent, Evaluation, EvaluationWatch, evaluations_in
from tracking_callbacks.sb3.importance import log_feature_importance
from tracking_callbacks.sb3.params import describe
from tracking_callbacks.sb3.prices import log_prices
from tracking_callbacks.sb3.relay import EventRelay, outermost
from tracking_callbacks.sb3.run_note import note_run, noted_run_key
from tracking_callbacks.sb3.run_writer import RunWriter

__all__ = ["MLflowSB3Callback"]

logger = logging.getLogger(__name__)

MODEL_CHOICE_TAG = "tracking_callbacks.model_choice"
STOPPED_EARLY_TAG = "tracking_callbacks.stopped_early"
INTERRUPTED_TAG = "tracking_callbacks.interrupted"


class MLflowSB3Callback(BaseCallback):
    """Tracks ``learn()``: hyperparameters, SB3's log, every episode, and the agent, in one truthful MLflow run.

    Nothing starts before the first training event, and no tracking fault reaches the training loop. The callback works
    alone, in a list, inside another callback, and when rl-baselines3-zoo builds it from keyword values.

    Args:
        tracker: Where runs go; None means ``MLflowTracker()``.
        run_name: Name of the run; by default MLflow makes one up.
        tags: Tags of the run, and of the model.
        log_model: Save the agent, with its VecNormalize statistics, at the end of the training run: True as it is then,
            ``"best"`` as it was at the best evaluation, see `best_by`. Evaluations are those of the first
            ``EvalCallback`` of the same training run. After an exception or Ctrl-C the agent is saved too, tagged as
            interrupted, but neither registered nor given an alias. With ``learn(reset_num_timesteps=False)``, usually
            in a loop, it is saved once: when ``run.flush()`` is called, another run begins or the program ends.
        best_by: What makes an evaluation the best: ``"mean_reward"``, or the name of a statistic of it, such as
            ``"sharpe_ratio"`` (see ``eval/…`` in docs/metrics.md). The highest value is the best.
        log_model_every: Also save the agent whenever this number of steps has passed; it is registered each time.
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        promote: Let an alias move to the new version only if it is better at the step of the saved agent:
            ``Promotion("champion", by="eval/sharpe_ratio")``, with ``log_model="best"`` and the same `best_by`.
        code_paths: Files and folders with your own code that the agent needs to be loaded; by default those below the
            project root whose modules the saved agent names.
        register_trials: Register the agents of a study's trials (Optuna, rl-baselines3-zoo) too, with their aliases.
            Without it, a trial is a run that is nested under one of the study, and its agent is only logged.
        returns: The return series behind the Sharpe ratio. ``"auto"``: the relative changes of the account value that
            the environment puts into its infos under a known key, otherwise the raw rewards; ``"reward"``: the raw
            rewards, taken as returns; ``"equity_reward"``, ``"pnl"`` or ``"log"``: the reward is the account value, the
            money earned or the log return of the step; any other text: the info key of an account value, whose
            relative changes are the returns; or a callable ``(info, reward) -> return`` of one step. Environments of
            FinRL, whose infos are empty, are asked for what they remember themselves. Rewards that look like account
            values give no ratio, and the tag ``sharpe.skipped`` says so.
        periods_per_year: Steps of the environment in a year, for annualised statistics: 252 for daily bars.
        initial_account: Account value at the start of each episode; ``returns="pnl"`` needs it.
        benchmark: What evaluations are compared with. ``"auto"``: the price that the environment trades, bought and
            held, where it is known; another text: the info key of a price; a series of prices, one at the start of the
            episode and one after each step; a callable ``(info) -> price``; or None.
        trials: Number of agents that this one was chosen from, for the deflated Sharpe ratio. By default the number of
            trials of the Optuna study that trains it, otherwise 1.
        verbose: With 1 or more, log where the run goes.

    Raises:
        ConfigError: An argument is invalid; the message names it and says what was expected.
    """

    def __init__(
        self,
        tracker: MLflowTracker | None = None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        log_model: LogModel = True,
        best_by: str = "mean_reward",
        log_model_every: int | None = None,
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        promote: Promotion | Mapping[str, Any] | None = None,
        code_paths: Iterable[str] | None = None,
        register_trials: bool = False,
        returns: Returns = "auto",
        periods_per_year: float = 252,
        initial_account: float | None = None,
        benchmark: Benchmark = "auto",
        trials: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        watch_method(BaseAlgorithm, "learn")
        self.log_model = check_log_model(log_model)
        self.best_by = check_best_by(best_by)
        self.log_model_every = check_count(log_model_every, "log_model_every")
        self.register_trials = register_trials
        self.code_paths = None if code_paths is None else check_code_paths(code_paths)
        self.returns = check_returns(returns)
        self.periods_per_year = check_periods(periods_per_year)
        self.initial_account = check_initial_account(initial_account, self.returns)
        self.benchmark = check_benchmark(benchmark)
        self.trials = check_count(trials, "trials")
        self.tags = dict(tags or {})
        self._model_logger = ModelLogger(
            log_model,
            default=True,
            registered_model_name=registered_model_name,
            aliases=aliases,
            tags=self.tags,
            promote=promote,
        )
        self._run_name = run_name
        self._callback_run = CallbackRun(
            tracker,
            run_name=run_name,
            tags=self.tags,
            framework=framework_tags("stable_baselines3", stable_baselines3.__version__),
            wind_up=self._wind_up,
            keep_model=self._keep_interrupted,
        )
        self._learn_started: float | None = None  # model.start_time (undocumented, SB3 2.9.2) of the last learn()
        self._training = False
        self._learning_pid = 0
        self._timestep = -1
        self._next_model_at = math.inf
        self._relay: EventRelay | None = None
        self._writer: RunWriter | None = None
        self._recorder: EpisodeRecorder | None = None
        self._window_clock: WindowClock | None = None
        self._watches: list[EvaluationWatch] = []
        self._best = BestAgent()
        self._last_evaluations: dict[str, tuple[int, Evaluation]] = {}

    @property
    def run(self) -> Run | None:
        """The run that the callback writes to; None before the first training event."""
        return self._callback_run.run

    @property
    def parent(self) -> BaseCallback | None:
        """The callback that this one is inside of; SB3 sets it."""
        return self._parent

    @parent.setter
    def parent(self, parent: BaseCallback | None) -> None:
        self._parent = parent
        # A list inside an EvalCallback sets the parent only after it has initialised its members.
        if getattr(self, "model", None) is not None:
            self._listen_to_parent()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what belongs to the training run of this object; a copy begins a new run."""
        nothing = dict.fromkeys(("_learn_started", "_relay", "_writer", "_recorder", "_window_clock"))
        fresh = {"_training": False, "_watches": [], "_best": BestAgent(), "_last_evaluations": {}}
        fresh |= {"locals": {}, "globals": {}}  # SB3's own variables, with modules that cannot be copied
        return self.__dict__ | nothing | fresh

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        watch_method(BaseAlgorithm, "learn")  # this may be another process

    # -- hooks ---------------------------------------------------------------------------------------------

    def _init_callback(self) -> None:
        self._listen_to_parent()

    def _on_training_start(self) -> None:
        self._callback_run.check_settings()  # wrong configuration raises, before the first step
        self._begin()

    @never_in_the_way
    def _on_rollout_start(self) -> None:
        if self._training and self._writer is not None and not self._off_policy:
            self._writer.install(self.logger)  # because the user may have set another logger
            self._writer.write_update(self.logger, self.model.num_timesteps)

    @never_in_the_way(default=True)
    def _on_step(self) -> bool:
        timestep = self.model.num_timesteps
        if timestep != self._timestep:  # inside another callback, its event reports the same step again
            self._timestep = timestep
            if not self._training:
                self._begin()
            if self._training and self._recorder is not None:
                self._recorder.add_step(self.locals, timestep)
                if self._window_clock is not None and self._window_clock.is_due(timestep):
                    self._log_window(timestep)
            if timestep >= self._next_model_at:
                self._next_model_at = timestep + (self.log_model_every or math.inf)
                self._log_model(self.run, self._prepare_last())
        return True

    @never_in_the_way
    def _on_rollout_end(self) -> None:
        if not self._off_policy:  # rollouts of off-policy algorithms are single steps
            self._log_rollout(self.model.num_timesteps)

    def _on_training_end(self) -> None:
        if not self._training:  # rl-baselines3-zoo announces the end again, also after an exception
            return
        self._wind_up()
        run, prepared = self.run, self._prepare_model()
        if run is not None and self.locals.get("reset_num_timesteps") is False:  # learn()'s own argument
            run.postpone(functools.partial(self._log_model, run, prepared))
        else:
            self._log_model(run, prepared)
        self._end()

    # -- start and end -------------------------------------------------------------------------------------

    @never_in_the_way
    def _begin(self) -> None:
        if self._learn_started != self.model.start_time:
            self._wind_up()  # a training run that was interrupted
            self._learn_started = self.model.start_time
            self._begin_training()

    @never_in_the_way(begins=True)
    def _begin_training(self) -> None:
        model = self.model
        continues = model._num_timesteps_at_start > 0  # undocumented (SB3 2.9.2)
        before = self.run
        self._name_run()
        resume_key = noted_run_key(model, self._callback_run.settings) if continues else None
        run = self._callback_run.begin_training(resume_key=resume_key, continues=continues, at_step=model.num_timesteps)
        self._training, self._learning_pid = True, os.getpid()
        atexit.register(self._wind_up)  # runs before the run is closed, if the training run never ends
        if run is before:
            run.postpone(None)  # another lap of a loop: the model is that of the last one
        else:
            if before is not None:
                before.write_postponed()
            self._next_model_at = model.num_timesteps + (self.log_model_every or math.inf)
        # Each piece has its own guard, and the essential ones come first: an unusual environment costs one of them.
        self._open_recorder(run, renewed=run is not before)
        self._open_writer(run)
        note_run(model, run)
        self._listen_to_parent()
        self._watch_evaluations()
        if self.verbose >= 1:
            settings = run.settings
            self.logger.info(f"Tracking to {settings.masked_uri}, experiment {settings.experiment_name!r}")
        self._describe(run)
        log_prices(run, self.training_env, "train", context="training")
        run.describe()

    @never_in_the_way
    def _name_run(self) -> None:
        """Let ``learn(tb_log_name=…)`` name the run, unless it is the algorithm's own default."""
        name = self.locals.get("tb_log_name")
        default = inspect.signature(type(self.model).learn).parameters.get("tb_log_name")
        if self._run_name is None and isinstance(name, str):
            self._callback_run.run_name = None if default is not None and name == default.default else name

    @never_in_the_way(piece="its episodes")
    def _open_recorder(self, run: Run, *, renewed: bool) -> None:
        if renewed or self._recorder is None:
            if self._recorder is not None:
                self._recorder.close()
            self._recorder = EpisodeRecorder(run, self.model, self._account())
            self._best = BestAgent()
        self._recorder.follow(self.model)

    @never_in_the_way(piece="the values of SB3's logger")
    def _open_writer(self, run: Run) -> None:
        begins_at, planned = self.model._num_timesteps_at_start, self.model._total_timesteps  # undocumented (SB3 2.9.2)
        budget = StepBudget(begins_at, planned - begins_at) if self._recorder is None else self._recorder.step_budget
        self._writer = RunWriter(run, self.model.start_time, self._on_dump, budget)
        self._writer.install(self.logger)
        self._window_clock = WindowClock(planned - begins_at) if self._off_policy else None

    @never_in_the_way
    def _describe(self, run: Run) -> None:
        described = describe(self.model)
        tag_framework(run, "stable_baselines3", stable_baselines3.__version__, model_type=described["algorithm"])
        log_description(run, Description(described, {"sb3.json": described}))

    @never_in_the_way
    def _listen_to_parent(self) -> None:
        if self.parent is None:
            return
        if self._relay is not None:
            self._relay.remove()
        self._relay = EventRelay(self, self._on_step)

    @never_in_the_way
    def _watch_evaluations(self) -> None:
        root = self.locals.get("callback")  # learn()'s own variable (SB3 2.9.2), with all callbacks in it
        found = list(evaluations_in(root if isinstance(root, BaseCallback) else outermost(self)))
        for index, callback in enumerate(found):
            role = "eval" if index == 0 else f"eval_{index + 1}"
            on_evaluation = functools.partial(self._on_evaluation, role)
            watch = EvaluationWatch(callback, self._account(), on_evaluation, run=self.run)
            self._watches.append(watch)
            if self.run is not None:
                self._note_environment(self.run, callback.eval_env, role)
                log_prices(self.run, callback.eval_env, role, context="evaluation")

    @never_in_the_way
    def _note_environment(self, run: Run, env: VecEnv, role: str) -> None:
        if (made := identity(env)) is not None:
            run.evaluated_on(role, made)

    @never_in_the_way
    def _wind_up(self) -> None:
        """Log what is still unlogged, and release SB3's objects."""
        if not self._training or self._learning_pid != os.getpid():  # a forked child runs its parent's exit functions
            return
        self._training = False
        atexit.unregister(self._wind_up)
        while self._watches:
            self._watches.pop().remove()
        if self._relay is not None:
            self._relay.remove()
            self._relay = None
        step = self.model.num_timesteps
        if self._writer is not None:
            self._writer.remove(self.logger)
            self._writer.write_remaining(self.logger, step)
        if self._recorder is not None:
            self._recorder.log_rollout(step, last=True)
            self._recorder.log_artifacts()
        self._log_last_evaluations()

    @never_in_the_way
    def _prepare_model(self) -> PreparedModel:
        best = self._best if self.log_model == "best" and self._best.score is not None else None
        if best is not None:
            choice = f"best: {self.best_by.replace('_', ' ')} {best.score} in the evaluation at step {best.timestep}"
            return self._prepared(best.timestep, {MODEL_CHOICE_TAG: choice}, best.snapshot)
        if self.log_model == "best":
            what = "evaluated the agent" if self.best_by == "mean_reward" else f"found its {self.best_by}"
            logger.warning("log_model='best': no EvalCallback has %s; it is saved as it is now", what)
            return self._prepared(self.model.num_timesteps, {MODEL_CHOICE_TAG: "last, for want of an evaluation"})
        return self._prepare_last()

    def _prepare_last(self) -> PreparedModel:
        return self._prepared(self.model.num_timesteps, {MODEL_CHOICE_TAG: "last"})

    def _prepared(self, step: int, tags: dict[str, str], snapshot: Path | None = None) -> PreparedModel:
        model = self.model

        def save(folder: Path) -> None:
            # gym_trading_env turns all warnings into errors when it is imported, and importing mlflow warns.
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                flavor.save_model(model, folder, snapshot=snapshot, code_paths=self.code_paths)

        return PreparedModel(save, step, tags=tags, run_tags=tags)

    def _log_model(self, run: Run | None, prepared: PreparedModel | None, *, register: bool = True) -> None:
        if run is not None and prepared is not None:
            register = register and (self.register_trials or not self._callback_run.in_trial)
            self._model_logger.log(run, lambda: prepared, register=register)

    def _keep_interrupted(self, error: BaseException) -> None:
        """Log the agent of a training run that `error` has stopped, best or last, without registering it."""
        prepared = self._prepare_model()
        if prepared is not None:
            tags = dict(prepared.tags) | {INTERRUPTED_TAG: type(error).__name__}
            self._log_model(self.run, dataclasses.replace(prepared, tags=tags, run_tags=tags), register=False)

    @never_in_the_way
    def _end(self) -> None:
        if self.run is not None and self.model.num_timesteps < self.model._total_timesteps:
            self.run.set_tags({STOPPED_EARLY_TAG: "true"})
        self._callback_run.end_training()

    # -- episodes and evaluations --------------------------------------------------------------------------

    def _log_rollout(self, step: int) -> None:
        if self._recorder is not None:
            self._recorder.log_rollout(step)

    def _on_dump(self, step: int) -> None:
        if self._off_policy:
            self._log_rollout(step)

    def _log_window(self, step: int) -> None:
        """Log what an off-policy algorithm, which dumps at ends of episodes only, has done since the last time."""
        if self._recorder is not None:
            self._recorder.step_budget.grant(step)
        if self._writer is not None:
            self._writer.install(self.logger)
            self._writer.write_update(self.logger, step)
        self._log_rollout(step)

    def _on_evaluation(self, role: str, evaluation: Evaluation) -> None:
        run = self.run
        if run is None:
            return
        statistics = {f"eval/{name}": value for name, value in evaluation.statistics.items()}
        run.log_metrics(statistics, step=self.model.num_timesteps)
        if evaluation.skipped:
            reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(evaluation.skipped.items()))
            run.set_tags({"eval.left_out": f"episodes of the last evaluation without trading statistics: {reasons}"})
        self._last_evaluations[role] = (self.model.num_timesteps, evaluation)
        run.describe()
        if role == "eval" and self.log_model == "best":
            scores = evaluation.statistics | {"mean_reward": evaluation.mean_reward}
            if self._best.offer(self.model, scores.get(self.best_by, math.nan), run):
                self._last_evaluations["best"] = (self.model.num_timesteps, evaluation)

    def _log_last_evaluations(self) -> None:
        best = self._last_evaluations.pop("best", None)
        evaluations = list(self._last_evaluations.items())
        if best is not None and best[0] != self._last_evaluations["eval"][0]:
            step, evaluation = best
            # The importance of features would be that of the agent as it is now, not as it was then.
            evaluations.append(("eval", (step, dataclasses.replace(evaluation, observations=None))))
        self._last_evaluations = {}
        for role, (step, evaluation) in evaluations if self.run is not None else ():
            assert self.run is not None
            place = evaluation_folder(role, step)
            evaluation.equity.log(self.run, place, picture=place, label="evaluation episode")
            log_market(self.run, place, evaluation.episodes, evaluation.statistics, self.periods_per_year)
            if evaluation.observations is not None:
                log_feature_importance(self.run, place, self.model, evaluation.observations, self.training_env)

    def _account(self) -> AccountSettings:
        return AccountSettings(
            self.returns,
            self.periods_per_year,
            self.initial_account,
            self.benchmark,
            self.trials or self._callback_run.trials,
        )

    @property
    def _off_policy(self) -> bool:
        return isinstance(self.model, OffPolicyAlgorithm)
