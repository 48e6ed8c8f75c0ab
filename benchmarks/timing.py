"""Percentiles, and timers for the methods of an object."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["Stopwatch", "percentile"]


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie (nearest rank)."""
    ordered: Sequence[float] = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


class Stopwatch:
    """Adds up the wall and CPU seconds of the outermost calls on the calling thread."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0
        self.first: dict[str, tuple[float, float]] = {}  # by method; wall and CPU
        self._inside = False

    def time_methods(self, owner: Any, names: Iterable[str]) -> None:
        """Time the methods `names` of one object from now on."""
        for name in names:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside = True
            spent, began = time.thread_time(), time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                wall, cpu = time.perf_counter() - began, time.thread_time() - spent
                self.wall += wall
                self.cpu += cpu
                self.first.setdefault(name, (wall, cpu))
                self._inside = False

        return timed
