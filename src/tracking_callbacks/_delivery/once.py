"""Creations that MLflow does not make idempotent (runs, logged models, model versions), each made once.

What is created carries a tag by which it can be found. An attempt is written down before it is made; after one whose
answer was lost, the thing is looked for until a late commit must have shown itself, and only then made again. Where
two carry one tag in the end, the older one is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tracking_callbacks._delivery.failures import DeliveryError, NotYetVisible, Transient
from tracking_callbacks._journal.records import now_ms

__all__ = ["Once"]

T = TypeVar("T")

# A create that timed out at the client after 1 s and was committed after 3 s made two runs when it was searched for in
# between and repeated. Servers give up on a request of their own within this time.
_LATE_COMMIT_MS = 20_000
_OUTCOME_KNOWN = 0


class Once:
    """Makes things once, through lost answers and deaths of this process.

    Args:
        attempts: Milliseconds since the epoch of the last attempt whose outcome is unknown, by the thing's name;
            part of the delivery state.
        save: Writes the delivery state down.
    """

    def __init__(self, attempts: dict[str, int], save: Callable[[], None]) -> None:
        self._attempts = attempts
        self._save = save

    def make(
        self,
        name: str,
        *,
        find: Callable[[], list[T]],
        create: Callable[[], T],
        discard: Callable[[T], None],
        look_first: bool = False,
    ) -> T:
        """Return the thing called `name`: found, or made.

        Args:
            name: Identifies the thing in the delivery state.
            find: Returns what former attempts have made, oldest first.
            create: Makes it.
            discard: Deletes one that was made beside another.
            look_first: Somebody else may have made it.

        Raises:
            NotYetVisible: The outcome of an attempt is still unknown.
            DeliveryError: `create` failed, or the store did not answer.
        """
        before = self._attempts.get(name)
        if before is not None or look_first:
            if found := find():
                return _keep_oldest(found, discard)
            if before is not None and 0 <= now_ms() - before < _LATE_COMMIT_MS:
                raise NotYetVisible(
                    f"the answer to the creation of the {name.partition(':')[0]} was lost; looking for it"
                )
        self._attempts[name] = now_ms()
        self._save()
        try:
            made = create()
        except DeliveryError as error:
            if not (isinstance(error, Transient) and error.may_have_committed):
                self._attempts[name] = _OUTCOME_KNOWN
                self._save()
            raise
        if before is None:
            del self._attempts[name]  # written down with what was made
            return made
        return _keep_oldest(find() or [made], discard)

    def in_doubt(self, name: str) -> bool:
        """Return whether any attempt has had an unknown outcome."""
        return name in self._attempts


def _keep_oldest(found: list[T], discard: Callable[[T], None]) -> T:
    for later in found[1:]:
        discard(later)
    return found[0]
