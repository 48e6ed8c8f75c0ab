"""Pure: which of many episodes are plotted."""

from __future__ import annotations

__all__ = ["PointBudget"]


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
