"""The names that a run has used, made safe for MLflow and kept apart."""

from __future__ import annotations

from tracking_callbacks.values import distinct_name, safe_name

__all__ = ["SafeNames"]


class SafeNames:
    """Names of one kind: metrics, params or tags.

    Attributes:
        safe: The safe name of each name that was seen; look here first, `add` what is not in it.
    """

    def __init__(self) -> None:
        self.safe: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def add(self, name: str) -> str:
        """Return the safe form of `name`, another one than that of any other name.

        Raises:
            InvalidNameError: `name` is empty or not a text.
        """
        safe = safe_name(name)
        if self._given.setdefault(safe, name) != name:
            safe = distinct_name(safe, name)
            self._given[safe] = name
        self.safe[name] = safe
        return safe
