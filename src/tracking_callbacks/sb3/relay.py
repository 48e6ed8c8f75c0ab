"""Brings the events of a training run to a callback that sits inside another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from tracking_callbacks._callbacks.patching import Patch, patched

__all__ = ["EventRelay", "outermost"]

_EVENTS = ("on_training_start", "on_rollout_start", "on_rollout_end", "on_training_end")


class EventRelay:
    """Lets `child` see what its outermost parent sees.

    SB3 passes nothing but its own event to the child of an ``EvalCallback``: no step, no rollout, no end of training,
    and for ``callback_on_new_best`` not even the start (``stable_baselines3.common.callbacks.EventCallback``). So the
    hooks of that one parent object are patched until `remove`, and call the child first.

    Args:
        child: The callback inside.
        on_step: Called for every step, because the child's own ``on_step`` is called at its parent's event only.
    """

    def __init__(self, child: BaseCallback, on_step: Callable[[], object]) -> None:
        root = outermost(child)

        def step() -> None:
            child.locals = root.locals  # SB3 does not pass them to every child
            on_step()

        listeners = {name: getattr(child, name) for name in _EVENTS} | {"on_step": step}
        self._patches = [_listen(root, name, listener) for name, listener in listeners.items()]

    def remove(self) -> None:
        """Take the patches off the parent's hooks."""
        for patch in self._patches:
            patch.remove()


def _listen(root: BaseCallback, name: str, listener: Callable[..., object]) -> Patch:
    def listener_first(call_next: Callable[..., Any], *args: Any) -> Any:
        listener(*args)
        return call_next(*args)

    return patched(root, name, listener_first)


def outermost(callback: BaseCallback) -> BaseCallback:
    """Return the outermost callback around `callback`; a ``CallbackList`` does not count, because SB3 skips it."""
    parent = callback
    while parent.parent is not None:
        parent = parent.parent
    return parent
