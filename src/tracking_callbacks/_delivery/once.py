"""Creates what MLflow does not create idempotently (runs, logged models, model versions) exactly once.

Each created object carries a tag by which it can be found. An attempt is recorded before it is made. If the answer to
one is lost, delivery searches for the object until a late commit must have become visible, and only then creates it
again. If two objects end up with the same tag, the older one is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tracking_callbacks._delivery.failures import DeliveryError, NotYetVisible, Transient
from tracking_callbacks._journal.records import now_ms

__all__ = ["LATE_COMMIT_MS", "Once"]

T = TypeVar("T")

# A create call that timed out at the client after 1 s and was committed after 3 s led to two runs, because delivery
# searched in between and then repeated it. Servers give up on a request within this time.
LATE_COMMIT_MS = 20_000
_OUTCOME_KNOWN = 0


class Once:
    """Creates each object once, even if answers are lost or this process dies.

    Args:
        attempts: Time of the last attempt with an unknown outcome, in milliseconds since the epoch, by the object's
            name; part of the delivery state.
        save: Saves the delivery state.
    """

    def __init__(self, attempts: dict[str, int], save: Callable[[], None]) -> None:
        self._attempts = attempts
        self.save = save

    def make(
        self,
        name: str,
        *,
        find: Callable[[], list[T]],
        create: Callable[[], T],
        discard: Callable[[T], None],
        look_first: bool = False,
    ) -> T:
        """Return the object called `name`, found or newly created.

        Args:
            name: Identifies the object in the delivery state.
            find: Returns what earlier attempts have created, oldest first.
            create: Creates the object.
            discard: Deletes a duplicate.
            look_first: Search before the first attempt, because another process may have created the object.

        Raises:
            NotYetVisible: The outcome of an attempt is still unknown.
            DeliveryError: `create` failed, or the store did not answer.
        """
        before = self._attempts.get(name)
        if before is not None or look_first:
            if found := find():
                return _keep_oldest(found, discard)
            if before is not None and 0 <= now_ms() - before < LATE_COMMIT_MS:
                raise NotYetVisible(
                    f"the answer to the creation of the {name.partition(':')[0]} was lost; looking for it"
                )
        self._attempts[name] = now_ms()
        self.save()
        try:
            made = create()
        except DeliveryError as error:
            if not (isinstance(error, Transient) and error.may_have_committed):
                self._attempts[name] = _OUTCOME_KNOWN
                self.save()
            raise
        if before is None:
            del self._attempts[name]  # the caller saves the state
            return made
        return _keep_oldest(find() or [made], discard)

    def overwrite(self, name: str, change: Callable[[], None]) -> None:
        """Carry out a change that would undo a later one if it were carried out late; see `outlast`.

        Args:
            name: Identifies the change in the delivery state.
            change: Carries it out.

        Raises:
            DeliveryError: `change` failed.
        """
        self._attempts[name] = now_ms()
        self.save()
        try:
            change()
        except DeliveryError as error:
            if not (isinstance(error, Transient) and error.may_have_committed):
                del self._attempts[name]
                self.save()
            raise
        del self._attempts[name]

    def outlast(self, name: str) -> None:
        """Make sure that no earlier attempt at the change `name` can be carried out any more.

        Raises:
            NotYetVisible: One may.
        """
        since = self._attempts.get(name)
        if since is not None and 0 <= now_ms() - since < LATE_COMMIT_MS:
            raise NotYetVisible(f"the answer to a change of the {name.partition(':')[0]} was lost; it may still happen")
        self._attempts.pop(name, None)

    def in_doubt(self, name: str) -> bool:
        """Return whether any attempt has had an unknown outcome."""
        return name in self._attempts


def _keep_oldest(found: list[T], discard: Callable[[T], None]) -> T:
    for later in found[1:]:
        discard(later)
    return found[0]
