"""The one place where the training side stops an exception: a tracking fault never reaches the training loop."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

__all__ = ["never_in_the_way"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

_reported: set[tuple[str | int, str, str]] = set()
_begun_training_runs = 0


@overload
def never_in_the_way(hook: Callable[P, R], /) -> Callable[P, R | None]: ...
@overload
def never_in_the_way(
    *, default: R, begins: bool = False, piece: str = ""
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@overload
def never_in_the_way(*, begins: bool) -> Callable[[Callable[P, R]], Callable[P, R | None]]: ...
@overload
def never_in_the_way(*, piece: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]: ...
def never_in_the_way(
    hook: Callable[P, Any] | None = None, /, *, default: Any = None, begins: bool = False, piece: str = ""
) -> Any:
    """Make a callback hook harmless: log any exception in it and return `default` instead.

    The traceback is logged as an error once per run, hook and exception type, and at debug level after that, so that a
    fault at every step does not flood the output of training. The guard takes the run from the first positional
    argument that has a ``run_key`` or a ``run.run_key``. If none has one, it counts per begin of training.
    ``KeyboardInterrupt`` and ``SystemExit`` pass through.

    Args:
        hook: The function or method to guard.
        default: What the guarded hook returns after an exception.
        begins: The hook begins a training run, and is called once for each. Its own failures, and later failures
            without a run, are then logged again.
        piece: What the hook records, in words. If the user's object lacks what that needs (an AttributeError or a
            NotImplementedError), one line at INFO says so, without a traceback.
    """

    def decorate(inner: Callable[P, Any]) -> Callable[P, Any]:
        name = getattr(inner, "__qualname__", repr(inner))

        @functools.wraps(inner)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return inner(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - this is the guard
                # A hook that begins a training run still has the run of the one before.
                _report(None if begins else _run_key_of(args), name, error, piece)
                return default

        @functools.wraps(inner)
        def guarded_begin(*args: P.args, **kwargs: P.kwargs) -> Any:
            global _begun_training_runs  # noqa: PLW0603 - one guard per process
            _begun_training_runs += 1
            return guarded(*args, **kwargs)

        return guarded_begin if begins else guarded

    return decorate if hook is None else decorate(hook)


def _report(run_key: str | None, hook: str, error: Exception, piece: str) -> None:
    seen = (run_key or _begun_training_runs, hook, type(error).__qualname__)
    again = seen in _reported
    _reported.add(seen)
    if piece and isinstance(error, (AttributeError, NotImplementedError)):
        reason = str(error) or type(error).__name__
        logger.log(logging.DEBUG if again else logging.INFO, "the run goes on without %s: %s", piece, reason)
        return
    level = logging.DEBUG if again else logging.ERROR
    logger.log(level, "tracking failed in %s; training goes on without this record", hook, exc_info=error)


def _run_key_of(arguments: tuple[object, ...]) -> str | None:
    for argument in arguments:
        with contextlib.suppress(Exception):  # a property of a user's object may raise anything
            for owner in (argument, getattr(argument, "run", None)):
                if isinstance(key := getattr(owner, "run_key", None), str):
                    return key
    return None
