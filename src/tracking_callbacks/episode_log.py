"""What a run gets to know of its episodes: points, statistics of each rollout, a table, the last equity curve."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks.episodes import Episode, EpisodeTable, PointBudget, Summary
from tracking_callbacks.run import Run

__all__ = ["EpisodeLog"]

_PER_ROLLOUT = {"reward": "episode/reward", "length": "episode/length", "sharpe_ratio": "episode/sharpe_ratio"}


class EpisodeLog:
    """The episodes of one run.

    Args:
        run: The run.
        first_step: Steps over all environments when the run began.
        planned_steps: Steps that it was to have at its begin.

    Attributes:
        close: Deletes the local copy of the table; called when this object goes, too.
    """

    def __init__(self, run: Run, first_step: int, planned_steps: int) -> None:
        self._run = run
        self._first_step = first_step
        self._budget = PointBudget(planned_steps)
        folder = tempfile.mkdtemp(prefix="tracking_callbacks-")
        self.close = weakref.finalize(self, _remove, folder, os.getpid())
        self._table = EpisodeTable(Path(folder, "episodes.csv"))
        self._window = _empty_window()
        self._window_step = -1
        self._episodes_in_window = 0
        self._left_out: Counter[str] = Counter()

    def add(self, episode: Episode) -> bool:
        """Take in a finished episode.

        Returns:
            Whether it is the first one whose returns could not be used.
        """
        metrics = episode.metrics()
        for name, metric in _PER_ROLLOUT.items():
            if metric in metrics:
                self._window[name].add(metrics[metric])
        self._episodes_in_window += 1
        if self._budget.spend(episode.timestep - self._first_step):
            self._run.log_metrics(metrics, step=episode.timestep)
        if episode.left_out is not None:
            self._left_out[episode.left_out] += 1
        self._table.add(episode)
        return episode.left_out is not None and self._left_out.total() == 1

    def log_window(self, step: int, total_reward: float) -> None:
        """Log the statistics of the episodes since the last time, and the reward of all steps so far."""
        if step == self._window_step:
            return
        metrics = {
            "train/cumulative_reward": total_reward,
            "rollout/episodes": float(self._episodes_in_window),
        }
        for name, summary in self._window.items():
            metrics |= summary.metrics(f"rollout/episode_{name}")
        self._run.log_metrics(metrics, step=step)
        self._window, self._window_step, self._episodes_in_window = _empty_window(), step, 0

    def log_artifacts(self, last_equity: NDArray[np.float64] | None) -> None:
        """Log the table of all episodes so far, and the equity curve of the last one."""
        self._run.log_artifact(self._table.write())
        if last_equity is not None:
            lines = (f"{step},{value}" for step, value in enumerate(last_equity.tolist()))
            self._run.log_text("step,equity\n" + "\n".join(lines) + "\n", "equity_curve.csv")
        if self._left_out:
            reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(self._left_out.items()))
            self._run.set_tags({"sharpe.left_out": f"episodes without a Sharpe ratio: {reasons}"})


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends with its parent's finalizers, too
        shutil.rmtree(folder, ignore_errors=True)


def _empty_window() -> dict[str, Summary]:
    return {name: Summary() for name in _PER_ROLLOUT}
