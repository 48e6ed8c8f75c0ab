"""Timestamps for points, in milliseconds, chosen so that MLflow keeps two equal points as two."""

from __future__ import annotations

import math

from tracking_callbacks._journal.records import now_ms

__all__ = ["MetricClock"]

_CLOCK_JUMP_MS = 60_000


class MetricClock:
    """Gives each point the current millisecond, or a later one if it repeats a point. Its owner holds a lock.

    MLflow stores identical (key, time, step, value) tuples once. That makes a re-sent batch harmless, but it would also
    swallow the second of two equal points logged within one millisecond.
    """

    def __init__(self) -> None:
        self._now = 0
        # By step. A step that was logged once keeps its points as they came: taking them apart costs one of the six
        # microseconds of a call, and most steps are logged only once within a millisecond.
        self._seen: dict[int, dict[str, float] | set[tuple[str, float | None]]] = {}

    def stamp(self, step: int, points: dict[str, float]) -> int:
        """Return the timestamp, in milliseconds since the epoch, for `points` at `step`."""
        now = now_ms()
        if now > self._now or now < self._now - _CLOCK_JUMP_MS:
            self._now = now
            self._seen = {step: points}
            return now
        earlier = self._seen.get(step)
        if earlier is None:
            self._seen[step] = points
            return self._now
        known = earlier if isinstance(earlier, set) else _identities(earlier)
        identities = _identities(points)
        if known.isdisjoint(identities):
            known |= identities
            self._seen[step] = known
        else:
            self._now += 1
            self._seen.clear()
            self._seen[step] = identities
        return self._now


def _identities(points: dict[str, float]) -> set[tuple[str, float | None]]:
    # NaN equals nothing, not even another NaN, but MLflow stores all NaNs alike.
    return {(key, None if math.isnan(value) else value) for key, value in points.items()}
