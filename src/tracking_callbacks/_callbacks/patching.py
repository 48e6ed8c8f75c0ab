"""Replaces a method of one of the user's objects for a while, next to whatever else replaces it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["Patch", "patched"]

P = ParamSpec("P")
R = TypeVar("R")

_PATCH = "_tracking_callbacks_patch"  # attribute of the function that a patch puts on the object


def patched(obj: object, name: str, around: Callable[Concatenate[Callable[P, R], P], R]) -> Patch:
    """Let `around` take the calls of ``obj.<name>``, on this one object, until `Patch.remove`.

    The patch is an instance attribute on top of the object's current attribute: the class's method, a hook that the
    user has set on the object, or another patch.

    Args:
        obj: The object; its class stays as it is.
        name: Name of the method.
        around: Called as ``around(call_next, *args, **kwargs)``. ``call_next`` is what the attribute was before, and
            `around` decides when to call it and what to return.

    Raises:
        AttributeError: `obj` has no attribute `name`.
    """
    return Patch(obj, name, around)


class Patch:
    """One link in the chain of functions that stand in for a method; made by `patched`.

    Patches of one method may be removed in any order, and the user may set the attribute at any time. Only the
    topmost function is visible as the object's attribute, so a patch that has something above it cannot take itself
    out: it becomes inactive and passes calls on.
    """

    def __init__(self, obj: object, name: str, around: Callable[..., Any]) -> None:
        self._obj = obj
        self._name = name
        self._active = True
        self._below_is_own = name in vars(obj)  # an attribute of the object and not of its class
        below = self._below = getattr(obj, name)

        self._around = around
        link = functools.wraps(below)(_Link())
        setattr(link, _PATCH, self)  # after `wraps`, which copies this attribute from a patch below
        self._link = link
        setattr(obj, name, link)

    def remove(self) -> None:
        """Take this patch out, and leave all others and the user's own hooks; a second call does nothing.

        The object gets back what was below, without the patches that were removed in the meantime. If something else
        has been set above, that stays, and this patch only stops taking calls.
        """
        self._active = False
        if vars(self._obj).get(self._name) is not self._link:
            return
        lowest = self
        while (below := _patch_of(lowest._below)) is not None and not below._active:
            lowest = below
        if lowest._below_is_own:
            setattr(self._obj, self._name, lowest._below)
        else:
            delattr(self._obj, self._name)


class _Link:
    """The function that a patch puts on the object. A copied or pickled object has what was below it instead."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        patch: Patch = getattr(self, _PATCH)
        below = patch._below
        return patch._around(below, *args, **kwargs) if patch._active else below(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _unpatched, (getattr(self, _PATCH)._below,)


def _unpatched(below: Any) -> Any:
    return below


def _patch_of(function: object) -> Patch | None:
    patch = getattr(function, _PATCH, None)
    # A user's own wrapper, made with `functools.wraps`, carries a copy of the attribute.
    return patch if isinstance(patch, Patch) and patch._link is function else None
