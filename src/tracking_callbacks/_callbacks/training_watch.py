"""Sees how a training method ends, because no hook of the frameworks reports an exception.

``Trainer.train`` and ``BaseAlgorithm.learn`` are wrapped once per process, on their classes, as MLflow's own
autologging does. Instances stay as they are, so they pickle and copy as before.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

__all__ = ["WatchedCall", "current_call", "watch_method"]

OnEnd = Callable[[BaseException | None], None]

_WATCHED = "_tracking_callbacks_watched"  # attribute of a wrapper; `functools.wraps` copies it to wrappers around ours
_innermost: ContextVar[WatchedCall | None] = ContextVar("tracking_callbacks_watched_call", default=None)


def watch_method(cls: type, name: str) -> None:
    """Watch the calls of ``cls.<name>``, and of every override in a subclass, whenever that is defined.

    A second call with the same arguments does nothing.

    Args:
        cls: The framework's class.
        name: Name of the method that does the whole training.
    """
    for each in (cls, *_subclasses(cls)):
        _watch_own(each, name)
    _watch_later_subclasses(cls, name)


def current_call() -> WatchedCall | None:
    """Return the innermost watched call that this thread is in."""
    return _innermost.get()


class WatchedCall:
    """One call of a watched method, as a context manager.

    Args:
        name: Name of the method.

    Attributes:
        name: Name of the method.
        outer: The watched call that this one was made in.
        result: What the method has returned; None before that.
    """

    result: Any = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.outer = _innermost.get()
        self._pid = os.getpid()
        self._on_end: list[OnEnd] = []
        self._token: Token[WatchedCall | None] | None = None

    def on_end(self, callback: OnEnd) -> None:
        """Have `callback` called when the method returns, with None, or raises, with the exception."""
        if callback not in self._on_end:
            self._on_end.append(callback)

    def around(self, name: str) -> WatchedCall | None:
        """Return the nearest call of the method `name` that this one was made in.

        By name, because a search may run another library's study, whose method is watched too.
        """
        call = self.outer
        while call is not None and call.name != name:
            call = call.outer
        return call

    def __enter__(self) -> WatchedCall:
        self._token = _innermost.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _innermost.reset(self._token)
        if error is not None and trace is not None:
            # The first frame is our wrapper's. Users see the traceback that they would see without it.
            error.__traceback__ = trace.tb_next
        if os.getpid() == self._pid:  # a child forked during the call does not end its parent's run
            for callback in reversed(self._on_end):
                callback(error)


def _watch_own(cls: type, name: str) -> None:
    method = vars(cls).get(name)
    if not inspect.isfunction(method) or getattr(method, "__isabstractmethod__", False) or hasattr(method, _WATCHED):
        return

    @functools.wraps(method)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with WatchedCall(name) as call:
            call.result = method(*args, **kwargs)
        return call.result

    setattr(watched, _WATCHED, True)
    setattr(cls, name, watched)


def _watch_later_subclasses(cls: type, name: str) -> None:
    own = vars(cls).get("__init_subclass__")
    watched_names: tuple[str, ...] = getattr(getattr(own, "__func__", None), _WATCHED, ())
    if name in watched_names:
        return

    def init_subclass(subclass: type, /, **kwargs: Any) -> None:
        if own is None:
            super(cls, subclass).__init_subclass__(**kwargs)  # type: ignore[arg-type]
        else:
            own.__func__(subclass, **kwargs)
        _watch_own(subclass, name)

    setattr(init_subclass, _WATCHED, (*watched_names, name))
    cls.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]


def _subclasses(cls: type) -> Iterator[type]:
    each: type
    for each in type.__subclasses__(cls):
        yield each
        yield from _subclasses(each)
