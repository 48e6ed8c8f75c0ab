"""Turns the variables of SB3's training loop into the episodes of a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from tracking_callbacks._episodes.account import AccountSettings
from tracking_callbacks._episodes.episode_log import EpisodeLog
from tracking_callbacks._episodes.episode_tracker import EpisodeTracker
from tracking_callbacks._episodes.point_budget import StepBudget
from tracking_callbacks._episodes.returns import Info
from tracking_callbacks._runs.run import Run
from tracking_callbacks.sb3.environments import attribute_of, is_monitored, reset_info
from tracking_callbacks.sb3.run_note import note_progress, noted_progress

__all__ = ["EpisodeRecorder"]

logger = logging.getLogger(__name__)

SKIPPED_TAG = "sharpe.skipped"  # why the first episode without a Sharpe ratio has none


class EpisodeRecorder:
    """Follows every step of the training runs that write to one MLflow run, and logs the episodes.

    Args:
        run: The run.
        model: The model in training; it may carry a note of earlier episodes of the run.
        account: What the trading statistics are made from.

    Attributes:
        run: The run.
    """

    def __init__(self, run: Run, model: BaseAlgorithm, account: AccountSettings) -> None:
        self.run = run
        self._model = model
        self._account = account
        begins_at = model._num_timesteps_at_start  # undocumented (SB3 2.9.2), like `_total_timesteps`
        self._log = EpisodeLog(run, begins_at, model._total_timesteps - begins_at, progress=noted_progress(model, run))
        self._tracker: EpisodeTracker | None = None
        self._env: VecEnv | None = None
        self._blind = False
        self._first_infos: Mapping[
            int, Info | None
        ] = {}  # of environments whose first episode starts with the training run

    def follow(self, model: BaseAlgorithm) -> None:
        """Note that a training run of `model` begins, and look at its environment."""
        self._model = model
        env = model.get_env()
        assert env is not None
        self._normalizer = model.get_vec_normalize_env()
        self._monitored = is_monitored(env)
        fresh = model._num_timesteps_at_start == 0
        if self._tracker is not None and self._env is env and not fresh:
            self._tracker.interrupt()
        elif self._tracker is not None:
            self._drop_tracker("their environment was reset or replaced")
        # A reloaded model resets its environment but keeps its step count. Off-policy models do not keep this attribute
        # up to date. Undocumented (SB3 2.9.2).
        known = model._last_episode_starts if isinstance(model, OnPolicyAlgorithm) else None
        starts = np.full(env.num_envs, fresh) if known is None else known
        self._first_infos = {index: reset_info(env, index) for index in np.flatnonzero(starts).tolist()}
        self._env = env

    def add_step(self, variables: Mapping[str, Any], timestep: int) -> None:
        """Add a step of every environment, from the variables of ``collect_rollouts`` (SB3 2.9.2)."""
        dones = variables.get("dones")
        if dones is None:  # ARS has none
            self._blind = True
            return
        infos = variables["infos"]
        tracker = self._tracker
        if tracker is None or tracker.n_envs != len(infos):
            tracker = self._open_tracker(infos)
        normalizer = self._normalizer
        # PPO adds bootstrapped values to its rewards after this hook; VecNormalize has scaled them before it, and
        # keeps the raw ones in `old_reward` (undocumented, SB3 2.9.2).
        tracker.add_step(variables["rewards"] if normalizer is None else normalizer.old_reward, infos)
        if np.count_nonzero(dones):
            self._close_episodes(tracker, dones, infos, timestep)

    @property
    def step_budget(self) -> StepBudget:
        """The steps at which the run's curves get a point."""
        return self._log.step_budget

    def log_rollout(self, step: int, *, last: bool = False) -> None:
        """Log the statistics since the last call, if the run has a point to spend at `step`, or if it is the last."""
        if self._tracker is not None:
            self._log.log_rollout(step, self._tracker, last=last)
            note_progress(self._model, self._log.progress())

    def log_artifacts(self) -> None:
        """Log what is logged once per training run."""
        self.run.draw("learning_curves", step="environment step")
        if self._tracker is not None:
            source, periods = self._tracker.source, self._account.periods_per_year
            captions = {"source": source.name, "periods_per_year": str(periods)}
            trades = source.declared or periods != AccountSettings().periods_per_year
            self._log.log_artifacts(captions, self._tracker, trades=trades)
        elif self._blind:
            algorithm = type(self._model).__name__
            self.run.set_tags({"episodes.left_out": f"all episodes: {algorithm} tells its callbacks no rewards"})

    def close(self) -> None:
        """Delete the local files."""
        self._log.close()

    def _open_tracker(self, infos: Sequence[Info]) -> EpisodeTracker:
        if self._tracker is not None:
            self._drop_tracker(f"{self._tracker.n_envs} environments became {len(infos)}")
        assert self._env is not None
        memory = functools.partial(attribute_of, self._env)
        source, periods = self._account.source(infos[0], memory), self._account.periods_per_year
        trials = {} if self._account.trials == 1 else {"sharpe.trials": self._account.trials}
        self.run.log_params({"sharpe.source": source.name, "sharpe.periods_per_year": periods} | trials)
        self._tracker = tracker = EpisodeTracker(len(infos), source, periods, memory)
        for env, info in self._first_infos.items():
            tracker.begin(env, info)
        self._first_infos = {}
        return tracker

    def _drop_tracker(self, reason: str) -> None:
        if self._tracker is not None:
            self._log.skip(self._tracker.running(), f"under way when {reason}")
            self._log.add_reward(self._tracker.total_reward())
            self._tracker = None

    def _close_episodes(
        self, tracker: EpisodeTracker, dones: NDArray[np.bool_], infos: Sequence[Info], timestep: int
    ) -> None:
        assert self._env is not None
        for env in np.flatnonzero(dones).tolist():
            info = infos[env]
            # As in SB3's own statistics: for a monitor, a lost life is not the end of an episode.
            if self._monitored and "episode" not in info:
                continue
            # SB3 resets environments before this hook, so these are the infos of the next episodes.
            episode = tracker.finish(env, timestep, info, reset_info(self._env, env))
            if episode is None:
                self._log.skip(1, "started before the training run, with no Monitor that knows their start")
            elif self._log.add(episode, tracker.last_equity):
                self.run.set_tags({SKIPPED_TAG: f"{episode.skipped} ({tracker.source.name})"})
                # Rewards are taken as returns by default, in games too; only of what the user declared is it a fault.
                level = logging.WARNING if tracker.source.declared else logging.INFO
                logger.log(
                    level,
                    "an episode has no Sharpe ratio: %s in %s; infos have the keys %s",
                    episode.skipped,
                    tracker.source.name,
                    sorted(map(str, info)),
                )
