"""Keeps a run's tags from going back to an earlier text.

A request whose answer was lost, because it timed out or its delivery process was killed, may be carried out after later
ones. Points and params do not change by that, but a tag would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from tracking_callbacks._delivery.batches import Batch, coalesce
from tracking_callbacks._delivery.failures import DeliveryError, NotYetVisible, Transient
from tracking_callbacks._delivery.once import LATE_COMMIT_MS
from tracking_callbacks._delivery.rejection import send_batch
from tracking_callbacks._delivery.session_journal import SessionJournal
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._journal.frames import read_records
from tracking_callbacks._journal.records import Automatic, DeleteTag, Tags, now_ms

__all__ = ["LateTags"]

_TAGS = "tags"


class LateTags:
    """The requests of one run that set tags and may still be carried out.

    Args:
        attempts: Times of the requests whose outcome is unknown, see `RunState.attempts`.
        store: The store.
        save: Saves `attempts`, so that they outlive this process.
    """

    def __init__(self, attempts: dict[str, int], store: Store, save: Callable[[], None]) -> None:
        self._attempts = attempts
        self._store = store
        self._save = save

    @contextlib.contextmanager
    def noted(self, batch: Batch) -> Iterator[None]:
        """Note that the tags of a batch are on their way, until their outcome is known."""
        if not batch.tags and batch.deleted is None:
            yield
            return
        unknown = self._attempts.get(_TAGS)
        self._attempts[_TAGS] = now_ms()
        self._save()
        try:
            yield
        except DeliveryError as error:
            if isinstance(error, Transient) and error.may_have_committed:
                raise
            self._reset(unknown)
            raise
        self._reset(unknown)

    def _reset(self, unknown: int | None) -> None:
        if unknown is None:
            self._attempts.pop(_TAGS, None)
        else:
            self._attempts[_TAGS] = unknown

    def outlast(self, run_id: str, sessions: Sequence[SessionJournal]) -> None:
        """Make sure that the tags are the last ones of the journals.

        Args:
            run_id: The store's id of the run.
            sessions: All sessions of the run.

        Raises:
            NotYetVisible: A request that sets tags may still be carried out.
        """
        if (since := self._attempts.get(_TAGS)) is None:
            return
        if 0 <= now_ms() - since < LATE_COMMIT_MS:
            raise NotYetVisible("the answer to a request that sets tags was lost; it may still be carried out")
        texts: dict[str, str] = {}
        deleted: set[str] = set()
        for session in sorted(sessions, key=lambda one: one.opened.session):
            for record, _ in read_records(session.path):
                if isinstance(record, Tags | Automatic):
                    texts |= record.tags
                    deleted -= record.tags.keys()
                elif isinstance(record, DeleteTag):
                    texts.pop(record.name, None)
                    deleted.add(record.name)
        for name in sorted(deleted):
            self._store.delete_tag(run_id, name)
        for batch in coalesce([(Tags(texts), 0)]):
            send_batch(self._store, run_id, batch)
        del self._attempts[_TAGS]
