"""When to try again: exponential pauses with jitter."""

from __future__ import annotations

import random
import time

__all__ = ["Backoff"]


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

    def fail(self, *, slowly: bool = False) -> float:
        """Begin a pause, the longest one at once if `slowly`, and return its seconds."""
        pause = self._longest if slowly else min(self._first * 2**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        pause *= random.uniform(0.5, 1.0)  # many trainers must not come back to a server at one instant
        self._until = time.monotonic() + pause
        return pause
