"""``MLflowSB3Callback``: from the hooks of Stable-Baselines3 to the verbs of a run."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import stable_baselines3
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize, is_vecenv_wrapped

from tracking_callbacks.attach import Attachment
from tracking_callbacks.episode_log import EpisodeLog
from tracking_callbacks.episodes import EpisodeBook
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.guard import never_in_the_way
from tracking_callbacks.returns import Info, Returns, check_returns, choose_source
from tracking_callbacks.run import Run
from tracking_callbacks.sb3.logger import RunWriter
from tracking_callbacks.sb3.params import describe
from tracking_callbacks.sb3.relay import EventRelay
from tracking_callbacks.tracker import MLflowTracker
from tracking_callbacks.values import check_aliases, check_model_name

__all__ = ["MLflowSB3Callback"]

log = logging.getLogger("tracking_callbacks")

MODEL_ERROR_TAG = "tracking_callbacks.model_error"
STOPPED_EARLY_TAG = "tracking_callbacks.stopped_early"


class MLflowSB3Callback(BaseCallback):
    """Tracks ``learn()``: hyperparameters, SB3's log, every episode, and the agent, in one truthful MLflow run.

    Nothing starts before the first training event, and no tracking fault reaches the training. Works alone, in a
    list, inside another callback, and built from keyword values by rl-baselines3-zoo.

    Args:
        tracker: Where runs go; None stands for ``MLflowTracker()``.
        run_name: Name of the run; by default MLflow makes one up.
        tags: Tags of the run.
        log_model: Save the agent, with its VecNormalize statistics, at the end of the training.
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        returns: The return series behind the Sharpe ratio. ``"auto"``: from the account value that the
            environment puts into its infos under a known key, else the raw rewards; ``"reward"``: the raw
            rewards, taken as returns; another text: the info key of an account value, whose relative changes are
            the returns; a callable ``(info, reward) -> return`` of one step.
        periods_per_year: Steps of the environment in a year, for annualised figures: 252 for daily bars.
        verbose: With 1 or more, say where the run goes.

    Raises:
        ConfigError: An argument cannot be used; the message names it and what was expected.
    """

    def __init__(
        self,
        tracker: MLflowTracker | None = None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        log_model: bool = True,
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        returns: Returns = "auto",
        periods_per_year: float = 252,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.log_model = log_model
        self.registered_model_name = registered_model_name
        self.aliases = check_aliases(aliases)
        self.returns = check_returns(returns)
        self.periods_per_year = _check_periods(periods_per_year)
        if registered_model_name is not None:
            check_model_name(registered_model_name, "registered_model_name")
        elif self.aliases:
            raise ConfigError(f"aliases: {self.aliases!r} need a registered_model_name", setting="aliases")
        self._attachment = Attachment(tracker, run_name=run_name, tags=tags)
        self._learn_started: float | None = None  # model.start_time of the learn() that was begun last
        self._training = False
        self._learning_pid = 0
        self._timestep = -1
        self._relay: EventRelay | None = None
        self._writer: RunWriter | None = None
        self._episodes: EpisodeLog | None = None
        self._book: EpisodeBook | None = None
        self._env: VecEnv | None = None
        self._normalizer: VecNormalize | None = None
        self._monitored = False
        self._earlier_reward = 0.0  # of environments that this run has left
        self._first_infos: Sequence[Info | None] = ()

    @property
    def run(self) -> Run | None:
        """The run that the callback writes to; None before the first training event."""
        return self._attachment.run

    # -- hooks ---------------------------------------------------------------------------------------------

    def _init_callback(self) -> None:
        if self.parent is not None:
            self._listen_to_parent()

    def _on_training_start(self) -> None:
        self._begin()

    @never_in_the_way
    def _on_rollout_start(self) -> None:
        if self._training and self._writer is not None and not self._off_policy:
            self._writer.install(self.logger)  # the user may have set another logger
            self._writer.write_update(self.logger, self.model.num_timesteps)

    @never_in_the_way(default=True)
    def _on_step(self) -> bool:
        timestep = self.model.num_timesteps
        if timestep != self._timestep:  # inside another callback, its event brings the same step again
            self._timestep = timestep
            if not self._training:
                self._begin()
            dones = self.locals.get("dones")  # ARS has none
            if dones is not None and self._training:
                self._add_step(self.locals["infos"], dones, timestep)
        return True

    @never_in_the_way
    def _on_rollout_end(self) -> None:
        if not self._off_policy:  # whose rollouts are single steps
            self._log_window(self.model.num_timesteps)

    def _on_training_end(self) -> None:
        if not self._training:  # rl-baselines3-zoo announces the end twice
            return
        self._wind_up()
        if self.log_model and self.run is not None:
            self._save_model(self.run)
        self._end()

    # -- begin and end -------------------------------------------------------------------------------------

    @never_in_the_way
    def _begin(self) -> None:
        model = self.model
        if self._learn_started == model.start_time:
            return
        self._wind_up()  # of a training that was interrupted
        self._learn_started = model.start_time
        begins_at = model._num_timesteps_at_start
        before = self.run
        run = self._attachment.begin_training(continues=begins_at > 0)
        self._training, self._learning_pid = True, os.getpid()
        if run is not before or self._episodes is None:
            if self._episodes is not None:
                self._episodes.close()
            self._book, self._earlier_reward = None, 0.0
            self._episodes = EpisodeLog(run, begins_at, model._total_timesteps - begins_at)
        self._follow_environment(continues=begins_at > 0)
        self._writer = RunWriter(run, model.start_time, self._on_dump)
        self._writer.install(self.logger)
        if self.parent is not None:
            self._listen_to_parent()
        atexit.register(self._wind_up)  # before the run is closed, if the training never ends
        if self.verbose >= 1:
            settings = run.settings
            self.logger.info(f"Tracking to {settings.shown_uri}, experiment {settings.experiment_name!r}")
        self._describe(run)

    @never_in_the_way
    def _describe(self, run: Run) -> None:
        described = describe(self.model)
        framework = {"framework": "stable_baselines3", "framework_version": stable_baselines3.__version__}
        run.set_tags(framework | {"model_type": described["algorithm"]})
        run.log_params(described)
        if run.settings.log_config:
            run.log_dict(described, "config/sb3.json")

    def _follow_environment(self, *, continues: bool) -> None:
        env = self.training_env
        self._normalizer = self.model.get_vec_normalize_env()
        self._monitored = bool(_is_monitored(env))
        # Of the innermost environment: wrappers keep those of the very first reset.
        self._first_infos = tuple(env.unwrapped.reset_infos) if not continues else ()
        if self._book is not None and self._env is env:
            self._book.interrupt()
        elif self._book is not None:
            self._earlier_reward += self._book.total_reward()
            self._book = None
        self._env = env

    @never_in_the_way
    def _listen_to_parent(self) -> None:
        if self._relay is not None:
            self._relay.remove()
        self._relay = EventRelay(self, self._on_step)

    @never_in_the_way
    def _wind_up(self) -> None:
        """Log what is still held back, and let go of SB3's objects."""
        if not self._training or self._learning_pid != os.getpid():  # a forked child exits with its parent's functions
            return
        self._training = False
        atexit.unregister(self._wind_up)
        if self._relay is not None:
            self._relay.remove()
            self._relay = None
        step = self.model.num_timesteps
        if self._writer is not None:
            self._writer.remove(self.logger)
            self._writer.write_rest(self.logger, step)
        self._log_window(step)
        if self._episodes is not None and self._book is not None:
            self._episodes.log_artifacts(self._book.last_equity)

    @never_in_the_way
    def _save_model(self, run: Run) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(_tag_model_error, run))
            # gym_trading_env turns all warnings into errors when it is imported, and importing mlflow warns.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracking_callbacks-")))
            flavor.save_model(self.model, folder / "model")
            run.log_model(
                folder / "model",
                registered_model_name=self.registered_model_name,
                aliases=self.aliases,
                step=self.model.num_timesteps,
            )

    @never_in_the_way
    def _end(self) -> None:
        if self.run is not None and self.model.num_timesteps < self.model._total_timesteps:
            self.run.set_tags({STOPPED_EARLY_TAG: "true"})
        self._attachment.end_training()

    # -- episodes ------------------------------------------------------------------------------------------

    def _add_step(self, infos: Sequence[Info], dones: NDArray[np.bool_], timestep: int) -> None:
        # PPO adds bootstrapped values to locals["rewards"] later, VecNormalize has scaled them before.
        normalizer = self._normalizer
        rewards = self.locals["rewards"] if normalizer is None else normalizer.get_original_reward()
        book = self._book
        if book is None:
            book = self._book = self._open_book(infos)
        book.add_step(rewards, infos)
        if np.count_nonzero(dones):
            for env in np.flatnonzero(dones).tolist():
                # As in SB3's own statistics: to a monitor, a lost life is not the end of an episode.
                if not self._monitored or "episode" in infos[env]:
                    self._close_episode(book, env, infos[env], timestep)

    def _open_book(self, infos: Sequence[Info]) -> EpisodeBook:
        source = choose_source(self.returns, infos[0])
        if self.run is not None:
            self.run.log_params({"sharpe.source": source.name, "sharpe.periods_per_year": self.periods_per_year})
        book = EpisodeBook(len(infos), source, self.periods_per_year)
        for env, info in enumerate(self._first_infos):
            book.begin(env, info)
        return book

    def _close_episode(self, book: EpisodeBook, env: int, info: Info, timestep: int) -> None:
        # VecEnvs reset before this hook: the innermost one has the info of the episode that has begun.
        reset_info = self.training_env.unwrapped.reset_infos[env]
        episode = book.finish(env, timestep, info, reset_info)
        if episode is not None and self._episodes is not None and self._episodes.add(episode):
            log.warning(
                "an episode has no Sharpe ratio: %s in %s; infos have the keys %s",
                episode.left_out,
                book.source.name,
                sorted(map(str, info)),
            )

    def _log_window(self, step: int) -> None:
        if self._episodes is not None and self._book is not None:
            self._episodes.log_window(step, self._earlier_reward + self._book.total_reward())

    def _on_dump(self, step: int) -> None:
        if self._off_policy:
            self._log_window(step)

    @property
    def _off_policy(self) -> bool:
        return isinstance(self.model, OffPolicyAlgorithm)


@never_in_the_way(default=False)
def _is_monitored(env: VecEnv) -> bool:
    return is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))


def _check_periods(periods: object) -> float:
    if isinstance(periods, bool) or not isinstance(periods, (int, float)) or not 0 < periods < math.inf:
        raise ConfigError(f"periods_per_year: expected a positive number, got {periods!r}", setting="periods_per_year")
    return periods


def _tag_model_error(
    run: Run, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
) -> None:
    if kind is not None:
        run.set_tags({MODEL_ERROR_TAG: f"{kind.__name__}: {error}"})
