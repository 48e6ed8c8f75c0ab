"""Which of many episodes and steps are plotted."""

from __future__ import annotations

import time

__all__ = ["PointBudget", "StepBudget", "WindowClock"]


class PointBudget:
    """Decides which episodes of a run become points of its curves, so that no run has more than `limit` points.

    Four fifths of the points are spread evenly over the steps that were planned at the start, the rest over the steps
    that follow when the model is trained further. A run with few episodes shows all of them.

    Attributes:
        spent: Points spent so far.
    """

    def __init__(self, planned_steps: int, limit: int = 1000, *, spent: int = 0) -> None:
        self.spent = spent
        self._planned = max(planned_steps, 1)
        self._limit = limit

    def spend(self, steps: int) -> bool:
        """Return whether an episode that ended `steps` steps after the start of the run gets a point."""
        share = 0.8 * steps / self._planned if steps <= self._planned else 1.0 - 0.2 * self._planned / steps
        if self.spent >= self._limit * share:
            return False
        self.spent += 1
        return True


class StepBudget:
    """Decides at which steps the curves of a run get a point, so that no curve has more than about `limit` points.

    Args:
        first_step: Steps when the run began.
        planned_steps: Steps that were planned at its start.
        limit: Most points of a curve.
        spent: Points that an earlier part of the run has spent.
    """

    def __init__(self, first_step: int, planned_steps: int, limit: int = 500, *, spent: int = 0) -> None:
        self._first_step = first_step
        self._budget = PointBudget(planned_steps, limit, spent=spent)
        self._step = -1
        self._plotted = False

    @property
    def spent(self) -> int:
        """Points spent so far."""
        return self._budget.spent

    def plots(self, step: int) -> bool:
        """Return whether the curves get a point at `step`; the answer for a step stays the same."""
        if step != self._step:
            self._step = step
            self._plotted = self._budget.spend(step - self._first_step)
        return self._plotted

    def grant(self, step: int) -> None:
        """Give the curves a point at `step`, whatever the plan says."""
        if not self.plots(step):
            self._budget.spent += 1
            self._plotted = True


class WindowClock:
    """Says when a window of steps ends that no rollout ends: after a five-hundredth of the plan, or after ten seconds.

    In a long training run the ten seconds become a hundredth of the time since its start.

    Args:
        planned_steps: Steps of the training run.
    """

    _LEAST_STEPS, _SECONDS = 100, 10.0

    def __init__(self, planned_steps: int) -> None:
        self._steps = max(planned_steps // 500, self._LEAST_STEPS)
        self._next_step: int | None = None
        self._began = self._ended = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether a window ends at `step`; the next one then begins."""
        if self._next_step is None:
            self._next_step = step + self._steps
        now = time.monotonic()
        if step < self._next_step and now - self._ended < max(self._SECONDS, (now - self._began) / 100):
            return False
        self._next_step, self._ended = step + self._steps, now
        return True
