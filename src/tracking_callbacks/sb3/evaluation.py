"""The evaluations of an ``EvalCallback``, seen from outside: their trading statistics, and the best agent so far."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from tracking_callbacks._callbacks.patching import patched
from tracking_callbacks._episodes.account import AccountSettings
from tracking_callbacks._episodes.episode_tracker import EpisodeTracker
from tracking_callbacks._episodes.equity_curves import EquityCurves
from tracking_callbacks._episodes.market import MarketEpisode, MarketRecorder, account_statistics, load_statistics
from tracking_callbacks._episodes.statistics import statistics_over_episodes
from tracking_callbacks._journal.confined import delete
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.sb3.environments import attribute_of, reset_info
from tracking_callbacks.sb3.importance import ObservationSample

__all__ = ["BestAgent", "Evaluation", "EvaluationWatch", "evaluations_in"]


@dataclass(slots=True)
class Evaluation:
    """The results of one evaluation.

    Attributes:
        mean_reward: The ``EvalCallback``'s own mean reward.
        statistics: The trading statistics over all its episodes, those that exist; see `statistics_over_episodes`.
        skipped: How many of its episodes could not be used for these statistics, by reason.
        equity: The account values of its last episodes, if they have any.
        episodes: Its episodes whose account is known, by their number from 1.
        observations: Some of what the policy saw, shape (n, *observation shape).
    """

    mean_reward: float
    statistics: dict[str, float]
    skipped: Counter[str] = field(default_factory=Counter)
    equity: EquityCurves = field(default_factory=EquityCurves)
    episodes: dict[int, MarketEpisode] = field(default_factory=dict)
    observations: NDArray[Any] | None = None


class EvaluationWatch:
    """Follows the steps of every evaluation of an ``EvalCallback``, until `remove`.

    SB3 calls ``_log_success_callback`` after every step of an evaluation, with the variables of ``evaluate_policy``.
    That method and ``_on_step`` are patched on this one object and still do their own work.

    Args:
        callback: The ``EvalCallback``, or an instance of a derived class (``MaskableEvalCallback``, …).
        account: What the trading statistics are made from.
        on_evaluation: Called after each evaluation.
        run: The run that the evaluations are logged to.

    Attributes:
        run: The run that the evaluations are logged to.
    """

    def __init__(
        self,
        callback: EvalCallback,
        account: AccountSettings,
        on_evaluation: Callable[[Evaluation], None],
        *,
        run: Run | None = None,
    ) -> None:
        self.run = run
        self._callback = callback
        self._account = account
        self._on_evaluation = on_evaluation
        self._begin()
        self._load_statistics()
        self._patches = (
            patched(callback, "_on_step", self._follow_evaluation),
            # Undocumented (SB3 2.9.2): EvalCallback passes this method to evaluate_policy as its `callback`.
            patched(callback, "_log_success_callback", self._follow_step),
        )

    def remove(self) -> None:
        """Take the patches off the callback's methods."""
        for patch in self._patches:
            patch.remove()

    def _follow_evaluation(self, call_next: Callable[[], bool]) -> bool:
        go_on = call_next()
        if self._rewards is not None:
            self._end()
            self._begin()
        return go_on

    def _follow_step(
        self, call_next: Callable[[dict[str, Any], dict[str, Any]], None], locals_: dict[str, Any], globals_: Any
    ) -> None:
        self._add_step(locals_)
        call_next(locals_, globals_)

    @never_in_the_way
    def _load_statistics(self) -> None:
        """Import what the statistics of an account need before the first step, instead of in the first evaluation."""
        env = self._callback.training_env
        if self._account.source(reset_info(env, 0) or {}, functools.partial(attribute_of, env)).declared:
            load_statistics()

    def _begin(self) -> None:
        self._tracker: EpisodeTracker | None = None
        self._rewards: NDArray[Any] | None = None  # of the step that was added last
        self._market: MarketRecorder | None = None
        self._series: list[NDArray[np.float64]] = []
        self._market_episodes: dict[int, MarketEpisode] = {}
        self._observations = ObservationSample()
        self._skipped: Counter[str] = Counter()
        self._equity = EquityCurves()
        self._episodes = 0

    @never_in_the_way
    def _add_step(self, step: dict[str, Any]) -> None:
        """Take in what one environment did in a step; SB3 reports a step once per environment that still plays.

        Undocumented (SB3 2.9.2): the names in `step` are local variables of ``evaluate_policy``.
        """
        env: VecEnv = step["env"]
        if self._tracker is None:
            self._tracker, self._market = self._open_tracker(env, step["dones"], step["infos"])
        if step["rewards"] is not self._rewards:
            self._rewards = step["rewards"]
            normalizer = unwrap_vec_normalize(env)
            raw = self._rewards if normalizer is None else normalizer.get_original_reward()
            self._tracker.add_step(raw, step["infos"])
            self._observations.add(step.get("observations"))
        index, info = step["i"], step["info"]
        assert self._market is not None
        self._market.add_step(index, info)
        if step["done"] and (not step["is_monitor_wrapped"] or "episode" in info):
            episode = self._tracker.finish(index, 0, info, reset_info(env, index))
            self._episodes += 1
            if self._tracker.last_equity is not None:
                self._equity.add(self._episodes, self._tracker.last_equity)
            if episode is not None and episode.skipped is not None:
                self._skipped[episode.skipped] += 1
            elif self._tracker.last_returns is not None:
                returns = self._tracker.last_returns.copy()
                self._series.append(returns)
                if self._tracker.source.declared:
                    equity = self._tracker.last_equity
                    self._market_episodes[self._episodes] = self._market.finish(index, returns, equity)
            self._market.begin(index, reset_info(env, index))

    def _open_tracker(
        self, env: VecEnv, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> tuple[EpisodeTracker, MarketRecorder]:
        memory = functools.partial(attribute_of, env)
        source = self._account.source(infos[0], memory)
        tracker = EpisodeTracker(env.num_envs, source, self._account.periods_per_year, memory)
        market = MarketRecorder(env.num_envs, self._account.benchmark, memory)
        for index in range(env.num_envs):
            # If the episode ended after one step, the info of its own reset has been overwritten.
            first = None if dones[index] else reset_info(env, index)
            tracker.begin(index, first)
            market.begin(index, first)
        return tracker, market

    @never_in_the_way
    def _end(self) -> None:
        account, known = self._account, list(self._market_episodes.values())
        year = {"periods_per_year": account.periods_per_year}
        statistics = (
            account_statistics(known, trials=account.trials, **year)
            if known
            else statistics_over_episodes(self._series, compounded=False, **year)
        )
        self._on_evaluation(
            Evaluation(
                self._callback.last_mean_reward,
                statistics,
                self._skipped,
                self._equity,
                self._market_episodes,
                self._observations.taken(),
            )
        )


class BestAgent:
    """The agent as it was at the best evaluation of a run, in temporary files.

    Attributes:
        score: What that evaluation was judged by; None before the first evaluation.
        timestep: Training step of that evaluation.
        snapshot: Folder written by `flavors.sb3.save_snapshot`.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.timestep = 0
        self._folder: Path | None = None

    @property
    def snapshot(self) -> Path:
        """The folder of the agent's files."""
        assert self._folder is not None, "there was no evaluation"
        return self._folder / str(self.timestep)

    def offer(self, model: BaseAlgorithm, score: float, run: Run) -> bool:
        """Keep `model`, which trains in `run`, as it is now if `score` is the highest so far; NaN never is.

        Returns:
            Whether it is.
        """
        if math.isnan(score) or (self.score is not None and score <= self.score):
            return False
        if self._folder is None:
            self._folder = run.journal.root.scratch()
            weakref.finalize(self, _remove, self._folder, os.getpid())
        flavor.save_snapshot(model, self._folder / "new")
        before = self.score is not None and self.snapshot
        self.score, self.timestep = score, model.num_timesteps
        if before:
            delete(before, within=self._folder)
        (self._folder / "new").rename(self.snapshot)
        return True


def evaluations_in(root: BaseCallback) -> Iterator[EvalCallback]:
    """Yield every ``EvalCallback`` among `root` and the callbacks inside it, in order."""
    if isinstance(root, EvalCallback):
        yield root
    inside = [
        *getattr(root, "callbacks", ()),
        getattr(root, "callback_on_new_best", None),
        getattr(root, "callback", None),
    ]
    for callback in inside:
        if isinstance(callback, BaseCallback):
            yield from evaluations_in(callback)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        delete(folder, within=folder.parent)
