"""Brings a training's events to a callback that sits inside another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["EventRelay", "outermost"]

_EVENTS = ("on_training_start", "on_rollout_start", "on_rollout_end", "on_training_end")


class EventRelay:
    """Lets `child` see what its outermost parent sees.

    SB3 hands the child of an ``EvalCallback`` nothing but its event: no step, no rollout, no end of training, and
    to ``callback_on_new_best`` not even the start (``stable_baselines3.common.callbacks.EventCallback``). So the
    parent's hooks are shadowed, on that one object and until `remove`, by functions that call the child first.

    Args:
        child: The callback inside.
        on_step: Called for every step, where the child's own ``on_step`` is called at its parent's event only.
    """

    def __init__(self, child: BaseCallback, on_step: Callable[[], object]) -> None:
        self._root = outermost(child)
        for name in _EVENTS:
            self._shadow(name, getattr(child, name))

        def step() -> None:
            child.locals = self._root.locals  # SB3 does not pass them to every child
            on_step()

        self._shadow("on_step", step)

    def remove(self) -> None:
        """Give the parent its own hooks back."""
        for name in (*_EVENTS, "on_step"):
            self._root.__dict__.pop(name, None)

    def _shadow(self, name: str, tell_child: Callable[..., object]) -> None:
        own = getattr(type(self._root), name).__get__(self._root)

        def relayed(*arguments: Any) -> Any:
            tell_child(*arguments)
            return own(*arguments)

        setattr(self._root, name, relayed)


def outermost(callback: BaseCallback) -> BaseCallback:
    """Return the callback that `callback` is inside of, through all levels; SB3's lists do not count as one."""
    parent = callback
    while parent.parent is not None:
        parent = parent.parent
    return parent
