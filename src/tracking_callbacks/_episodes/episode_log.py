"""Logs episodes to a run: points, statistics, the table, the last equity curves, and what was skipped."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks._episodes.episode_table import EpisodeTable
from tracking_callbacks._episodes.episode_tracker import Episode
from tracking_callbacks._episodes.equity_curves import EquityCurves
from tracking_callbacks._episodes.point_budget import PointBudget, StepBudget
from tracking_callbacks._episodes.statistics import RunningStats
from tracking_callbacks._journal.confined import delete
from tracking_callbacks._runs.run import Run

__all__ = ["EpisodeLog", "StepWindows"]

_PER_ROLLOUT = {"reward": "episode/reward", "length": "episode/length", "sharpe_ratio": "episode/sharpe_ratio"}

# The table is also logged during the training run, in case the process is killed. Each time it has grown by at least a
# quarter, so that all uploads together are at most five times the size of the last one.
_TABLE_SECONDS = 60.0
_TABLE_GROWTH = 1.25

UNDER_WAY_TAG = "episodes.under_way"
NO_RATIO = "fewer than two returns, or all of them equal"
NO_REWARD = "NaN or infinite rewards, which are not in the rollout statistics"


class StepWindows(Protocol):
    """The steps of the running episodes of all environments, see `EpisodeTracker`."""

    def total_reward(self) -> float:
        """Return the sum of all rewards so far."""
        ...

    def lengths(self) -> list[int]:
        """Return the steps of each running episode."""
        ...

    def begin_window(self) -> None:
        """Begin a window of steps."""
        ...

    def window_statistics(self) -> dict[str, float]:
        """Return the statistics of the steps since `begin_window`."""
        ...

    def equity_under_way(self) -> NDArray[np.float64] | None:
        """Return the account values of the first running episode."""
        ...


class EpisodeLog:
    """The episodes of one run.

    Args:
        run: The run.
        first_step: Steps over all environments when the run began.
        planned_steps: Steps that were planned at the start of the run.
        progress: What `progress` returned when another process or callback stopped writing to this run.

    Attributes:
        step_budget: The steps at which the run's curves get a point.
        close: Deletes the local copy of the table; also called when this object is deleted.
    """

    def __init__(
        self, run: Run, first_step: int, planned_steps: int, *, progress: Mapping[str, float] | None = None
    ) -> None:
        known = progress or {}
        self._run = run
        self._first_step = int(known.get("first_step", first_step))
        self._planned_steps = int(known.get("planned_steps", planned_steps))
        self._budget = PointBudget(self._planned_steps, spent=int(known.get("points", 0)))
        self.step_budget = StepBudget(self._first_step, self._planned_steps, spent=int(known.get("rollout_points", 0)))
        self._earlier_reward = float(known.get("cumulative_reward", 0.0))
        self._total_reward = self._earlier_reward
        folder = str(run.journal.root.scratch())
        self.close = weakref.finalize(self, _remove, folder, os.getpid())
        # This process cannot append to a table that another process has logged.
        name = f"episodes_from_step_{first_step}.csv" if known else "episodes.csv"
        self._table = EpisodeTable(Path(folder, name), before=int(known.get("episodes", 0)))
        self._logged_table = self._table.lines
        self._logged_table_at = time.monotonic()
        self._equity = EquityCurves()
        self._window = _empty_window()
        self._window_step = -1
        self._under_way = False
        self._episodes_in_window = 0
        self._skipped: dict[str, Counter[str]] = {"sharpe": Counter(), "reward": Counter(), "episodes": Counter()}

    def add(self, episode: Episode, equity: NDArray[np.float64] | None = None) -> bool:
        """Add a finished episode.

        Args:
            episode: The episode.
            equity: Its account values, from the reset on; None if it has none.

        Returns:
            Whether it is the first episode whose returns could not be used.
        """
        metrics = episode.metrics()
        for name, metric in _PER_ROLLOUT.items():
            if metric in metrics:
                self._window[name].add(metrics[metric])
        self._episodes_in_window += 1
        if self._budget.spend(episode.timestep - self._first_step):
            self._run.log_metrics(metrics, step=episode.timestep)
        self._table.add(episode)
        if equity is not None:
            self._equity.add(self._table.lines, equity)
        no_ratio = self._skipped["sharpe"]
        if not math.isfinite(episode.reward):
            self._skipped["reward"][NO_REWARD] += 1
        if episode.skipped is None:
            if "sharpe_ratio" not in episode.statistics:
                no_ratio[NO_RATIO] += 1
            return False
        no_ratio[episode.skipped] += 1
        return no_ratio.total() - no_ratio[NO_RATIO] == 1

    def skip(self, episodes: int, reason: str) -> None:
        """Note that this number of episodes is missing from the run, and why."""
        if episodes:
            self._skipped["episodes"][reason] += episodes

    def log_rollout(self, step: int, steps: StepWindows | None, *, last: bool = False) -> None:
        """Log the statistics of the episodes since the last time, and the reward of all steps so far.

        If no episode has ended since then, the statistics of the steps are logged in their place.

        Args:
            step: Steps over all environments.
            steps: The steps of the running episodes; None before the first one.
            last: Log them although the run has no more points to spend.
        """
        if step == self._window_step:
            return
        self._total_reward = self._earlier_reward + (0.0 if steps is None else steps.total_reward())
        if not (self.step_budget.plots(step) or last):
            return
        metrics = {
            "train/cumulative_reward": self._total_reward,
            "rollout/episodes": float(self._episodes_in_window),
        }
        for name, stats in self._window.items():
            metrics |= stats.metrics(f"rollout/episode_{name}")
        if steps is not None:
            if not self._episodes_in_window:
                metrics |= {f"rollout/{name}": value for name, value in steps.window_statistics().items()}
                self._note_under_way(steps)
            steps.begin_window()
        self._run.log_metrics(metrics, step=step)
        self._window, self._window_step, self._episodes_in_window = _empty_window(), step, 0
        if time.monotonic() - self._logged_table_at >= _TABLE_SECONDS:
            self._log_table(at_least=int(self._logged_table * _TABLE_GROWTH) + 1)

    def add_reward(self, reward: float) -> None:
        """Add the rewards of steps that are no longer followed."""
        self._earlier_reward += reward

    def _note_under_way(self, steps: StepWindows) -> None:
        lengths = [length for length in steps.lengths() if length]
        if lengths and not self._under_way:
            self._under_way = True
            self._run.set_tags({UNDER_WAY_TAG: f"{len(lengths)}, the longest for {max(lengths)} steps or more"})

    def log_artifacts(self, captions: Mapping[str, str], steps: StepWindows, *, trades: bool = True) -> None:
        """Log the table of all episodes so far, the equity curves of the last ones, pictures, and what was skipped.

        Args:
            steps: The steps of the running episodes.
            captions: Texts for the picture of the Sharpe ratio, see `Run.draw`.
            trades: Episodes are meant to have a Sharpe ratio, so those without one are counted.
        """
        self._log_table()
        self._run.draw("episodes", data=self._table.write(), **captions)
        if self._under_way:
            self._log_under_way(steps)
        self._equity.log(self._run, picture="figures")
        subjects = {
            "sharpe": "episodes without a Sharpe ratio",
            "reward": "episodes without a reward",
            "episodes": "episodes that are not in the run",
        }
        for name, subject in subjects.items():
            if (counts := self._skipped[name]) and (trades or name != "sharpe"):
                reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(counts.items()))
                self._run.set_tags({f"{name}.left_out": f"{subject}: {reasons}"})

    def _log_under_way(self, steps: StepWindows) -> None:
        """Say how far the episodes have come that have not ended, and add the account values of the first one."""
        lengths = [length for length in steps.lengths() if length]
        text = f"{len(lengths)}, the longest for {max(lengths)} steps" if lengths else "none"
        self._run.set_tags({UNDER_WAY_TAG: text})
        if lengths and not self._table.lines and (equity := steps.equity_under_way()) is not None:
            self._equity.add(1, equity)

    def progress(self) -> dict[str, float]:
        """Return how far the run's episodes have come, for a process or callback that continues the run."""
        return {
            "first_step": self._first_step,
            "planned_steps": self._planned_steps,
            "episodes": self._table.lines,
            "points": self._budget.spent,
            "rollout_points": self.step_budget.spent,
            "cumulative_reward": self._total_reward,
        }

    def _log_table(self, at_least: int = 0) -> None:
        self._logged_table_at = time.monotonic()
        if self._table.lines >= at_least:
            self._logged_table = self._table.lines
            self._run.record("reports", lambda: self._run.log_artifact(self._table.write()))


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child runs its parent's finalizers, too
        delete(Path(folder), within=Path(folder).parent)


def _empty_window() -> dict[str, RunningStats]:
    return {name: RunningStats() for name in _PER_ROLLOUT}
