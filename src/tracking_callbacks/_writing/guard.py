"""The one place where the training side stops an exception: a tracking fault never reaches the training loop."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

__all__ = ["never_in_the_way"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

_reported: set[tuple[str, str]] = set()


@overload
def never_in_the_way(hook: Callable[P, R], /) -> Callable[P, R | None]: ...
@overload
def never_in_the_way(*, default: R) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def never_in_the_way(hook: Callable[P, Any] | None = None, /, *, default: Any = None) -> Any:
    """Make a callback hook harmless: log any exception in it and return `default` instead.

    The traceback is logged as an error once per hook and exception type, and at debug level after that, so that a fault
    at every step does not flood the output of the training. ``KeyboardInterrupt`` and ``SystemExit`` pass through.

    Args:
        hook: The function or method to guard.
        default: What the guarded hook returns after an exception.
    """

    def decorate(inner: Callable[P, Any]) -> Callable[P, Any]:
        @functools.wraps(inner)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return inner(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - this is the guard
                _report(getattr(inner, "__qualname__", repr(inner)), error)
                return default

        return guarded

    return decorate if hook is None else decorate(hook)


def _report(hook: str, error: Exception) -> None:
    seen = (hook, type(error).__qualname__)
    level = logging.DEBUG if seen in _reported else logging.ERROR
    _reported.add(seen)
    logger.log(level, "tracking failed in %s; training goes on without this record", hook, exc_info=error)
