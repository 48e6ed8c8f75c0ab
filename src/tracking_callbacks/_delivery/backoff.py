"""When to retry: exponential pauses with jitter for a lane, and a few quick retries for a single request."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tracking_callbacks._delivery.failures import Transient

__all__ = ["Backoff", "Pace", "retry_transient"]

P = ParamSpec("P")
R = TypeVar("R")

_QUICK_PAUSES = (0.1, 0.2, 0.4, 0.8)
_SHORTEST_PACE, _LONGEST_PACE = 0.25, 10.0
_WEIGHT_OF_LAST = 0.3


class Pace:
    """How often a run's points are sent: rarely enough that delivery takes a fifth of the server's time at most.

    When the server answers slowly, batches grow and requests become fewer.

    Attributes:
        seconds: Least time between two requests.
    """

    def __init__(self) -> None:
        self.seconds = _SHORTEST_PACE
        self._latency = 0.0

    def note(self, latency: float) -> None:
        """Note how many seconds the store took to answer."""
        self._latency += _WEIGHT_OF_LAST * (latency - self._latency)
        self.seconds = min(max(_SHORTEST_PACE, 5 * self._latency), _LONGEST_PACE)


class Backoff:
    """The pauses of one lane after failures.

    Args:
        first: Length of the first pause in seconds.
        longest: Length of the longest pause in seconds.
    """

    def __init__(self, first: float = 0.25, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0
        self._until = 0.0

    def ready(self) -> bool:
        """Return whether no pause is in progress."""
        return time.monotonic() >= self._until

    def succeed(self) -> None:
        """Forget all failures."""
        self._failures = 0
        self._until = 0.0

    def wait(self, seconds: float) -> None:
        """Begin a pause because something is not visible yet; this does not count as a failure."""
        self._until = time.monotonic() + seconds

    def fail(self, *, slowly: bool = False, at_least: float = 0.0) -> float:
        """Begin a pause after a failure, and return its seconds.

        Args:
            slowly: Begin with the longest pause.
            at_least: Seconds that the store has asked to wait. They may exceed the longest pause.
        """
        pause = self._longest if slowly else min(self._first * 2**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        # Many trainers must not return to a server at the same moment.
        pause = max(pause * random.uniform(0.5, 1.0), at_least * random.uniform(1.0, 1.2))
        self._until = time.monotonic() + pause
        return pause


def retry_transient(call: Callable[P, R]) -> Callable[P, R]:
    """Retry a call quickly after a transient failure; repeating the call must be harmless.

    A model takes about twelve requests. Without these retries, if 3 in 10 requests fail and each failure restarts the
    whole record, one attempt in seventy succeeds, and the pauses between attempts grow to the longest.
    """

    @functools.wraps(call)
    def retried(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause in _QUICK_PAUSES:
            try:
                return call(*args, **kwargs)
            except Transient as error:
                if not error.retry_now or error.retry_after > pause:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.0))
        return call(*args, **kwargs)

    return retried
