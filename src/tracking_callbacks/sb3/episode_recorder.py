"""From the variables of SB3's training loop to the episodes of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from tracking_callbacks._episodes.episode_log import EpisodeLog
from tracking_callbacks._episodes.episode_tracker import EpisodeTracker
from tracking_callbacks._episodes.returns import Info, Returns, choose_source
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.sb3.run_note import note_progress, noted_progress

__all__ = ["EpisodeRecorder"]

logger = logging.getLogger(__name__)


class EpisodeRecorder:
    """Takes in every step of the trainings that a run has, and logs the episodes.

    Args:
        run: The run.
        model: What is trained; it may know of earlier episodes of the run.
        returns: Source of the return series.
        periods_per_year: For the annualised figures.
    """

    def __init__(self, run: Run, model: BaseAlgorithm, returns: Returns, periods_per_year: float) -> None:
        self._run = run
        self._model = model
        self._returns = returns
        self._periods = periods_per_year
        begins_at = model._num_timesteps_at_start
        self._log = EpisodeLog(run, begins_at, model._total_timesteps - begins_at, progress=noted_progress(model, run))
        self._book: EpisodeTracker | None = None
        self._earlier_reward = 0.0  # of environments that this run has left
        self._env: VecEnv | None = None
        self._blind = False
        self._first_infos: Mapping[int, Info | None] = {}  # of environments that begin an episode with the training

    def follow(self, model: BaseAlgorithm) -> None:
        """A training begins: look at its environment."""
        self._model = model
        env = model.get_env()
        assert env is not None
        self._normalizer = model.get_vec_normalize_env()
        self._monitored = bool(_is_monitored(env))
        fresh = model._num_timesteps_at_start == 0
        if self._book is not None and self._env is env and not fresh:
            self._book.interrupt()
        elif self._book is not None:
            self._leave_book("their environment was reset or replaced")
        # A reloaded model resets its environment and counts on; off-policy ones do not keep this up to date.
        known = model._last_episode_starts if isinstance(model, OnPolicyAlgorithm) else None
        starts = np.full(env.num_envs, fresh) if known is None else known
        # Of the innermost environment: wrappers keep the infos of the very first reset.
        reset_infos = env.unwrapped.reset_infos
        self._first_infos = {index: reset_infos[index] for index in np.flatnonzero(starts).tolist()}
        self._env = env

    def add_step(self, variables: Mapping[str, Any], timestep: int) -> None:
        """Take in a step of every environment, out of the variables of ``collect_rollouts``."""
        dones = variables.get("dones")
        if dones is None:  # ARS has none
            self._blind = True
            return
        infos = variables["infos"]
        book = self._book
        if book is None or book.n_envs != len(infos):
            book = self._open_book(infos)
        normalizer = self._normalizer
        # PPO adds bootstrapped values to its rewards later, VecNormalize has scaled them before.
        book.add_step(variables["rewards"] if normalizer is None else normalizer.old_reward, infos)
        if np.count_nonzero(dones):
            self._close_episodes(book, dones, infos, timestep)

    def log_rollout(self, step: int) -> None:
        """Log the statistics of the episodes since the last time."""
        if self._book is not None:
            self._log.log_rollout(step, self._earlier_reward + self._book.total_reward())
            note_progress(self._model, self._log.progress())

    def log_artifacts(self) -> None:
        """Log what is logged once per training."""
        self._run.draw("learning_curves", step="environment step")
        if self._book is not None:
            self._log.log_artifacts({"source": self._book.source.name, "periods_per_year": str(self._periods)})
        elif self._blind:
            algorithm = type(self._model).__name__
            self._run.set_tags({"episodes.left_out": f"all episodes: {algorithm} tells its callbacks no rewards"})

    def close(self) -> None:
        """Delete the local files."""
        self._log.close()

    def _open_book(self, infos: Sequence[Info]) -> EpisodeTracker:
        if self._book is not None:
            self._leave_book(f"{self._book.n_envs} environments became {len(infos)}")
        source = choose_source(self._returns, infos[0])
        self._run.log_params({"sharpe.source": source.name, "sharpe.periods_per_year": self._periods})
        self._book = book = EpisodeTracker(len(infos), source, self._periods)
        for env, info in self._first_infos.items():
            book.begin(env, info)
        self._first_infos = {}
        return book

    def _leave_book(self, reason: str) -> None:
        if self._book is not None:
            self._log.leave_out(self._book.running(), f"under way when {reason}")
            self._earlier_reward += self._book.total_reward()
            self._book = None

    def _close_episodes(
        self, book: EpisodeTracker, dones: NDArray[np.bool_], infos: Sequence[Info], timestep: int
    ) -> None:
        assert self._env is not None
        # VecEnvs reset before this hook: the innermost one has the infos of the episodes that have begun.
        reset_infos = self._env.unwrapped.reset_infos
        for env in np.flatnonzero(dones).tolist():
            info = infos[env]
            # As in SB3's own statistics: to a monitor, a lost life is not the end of an episode.
            if self._monitored and "episode" not in info:
                continue
            episode = book.finish(env, timestep, info, reset_infos[env] if env < len(reset_infos) else None)
            if episode is None:
                self._log.leave_out(1, "begun before the training, with no Monitor that knows their begin")
            elif self._log.add(episode, book.last_equity):
                logger.warning(
                    "an episode has no Sharpe ratio: %s in %s; infos have the keys %s",
                    episode.skipped,
                    book.source.name,
                    sorted(map(str, info)),
                )


@never_in_the_way(default=False)
def _is_monitored(env: VecEnv) -> bool:
    return is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))
