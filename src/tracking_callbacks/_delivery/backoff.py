"""When to try again: exponential pauses with jitter, and a few tries at once for single requests."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tracking_callbacks._delivery.failures import Transient

__all__ = ["Backoff", "retry_transient"]

P = ParamSpec("P")
R = TypeVar("R")

_QUICK_PAUSES = (0.1, 0.2, 0.4, 0.8)


class Backoff:
    """Pauses of one lane after failures.

    Args:
        first: Seconds of the first pause.
        longest: Seconds that no pause exceeds.
    """

    def __init__(self, first: float = 0.25, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0
        self._until = 0.0

    def ready(self) -> bool:
        """Return whether the pause, if there is one, is over."""
        return time.monotonic() >= self._until

    def succeed(self) -> None:
        """Forget all failures."""
        self._failures = 0
        self._until = 0.0

    def wait(self, seconds: float) -> None:
        """Begin a pause because something is not there yet, which is no failure."""
        self._until = time.monotonic() + seconds

    def fail(self, *, slowly: bool = False) -> float:
        """Begin a pause, the longest one at once if `slowly`, and return its seconds."""
        pause = self._longest if slowly else min(self._first * 2**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        pause *= random.uniform(0.5, 1.0)  # many trainers must not come back to a server at one instant
        self._until = time.monotonic() + pause
        return pause


def retry_transient(call: Callable[P, R]) -> Callable[P, R]:
    """Let a call that is harmless when repeated survive a transient failure by itself.

    A model takes some twelve requests: where 3 in 10 fail and each failure begins the record again, one try in
    seventy comes through, and the pauses between them grow to their longest.
    """

    @functools.wraps(call)
    def patient(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause in _QUICK_PAUSES:
            try:
                return call(*args, **kwargs)
            except Transient as error:
                if not error.retry_now:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.0))
        return call(*args, **kwargs)

    return patient
