"""Lets one of a machine's delivery processes deliver for all of them where each would have to import MLflow.

A local store needs MLflow's client: 240 MB and a second of CPU. Eight training processes at once held eight times that.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from tracking_callbacks._journal.confined import delete
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._values.store_uri import is_local_store

__all__ = ["Lead"]


class Lead:
    """Whether this process leads: it delivers, and the others leave their owners' runs to it.

    The lead passes on when the process ends, however it ends. A store that needs no MLflow has no lead, because its
    delivery process is light; one that needs credentials has none, because they may differ from owner to owner.

    Args:
        root: The journal root.
        store: The store that the process delivers to.
    """

    def __init__(self, root: JournalRoot, store: StoreAddress) -> None:
        self._root = root
        local = is_local_store(store.uri) and is_local_store(store.registry_uri or store.uri)
        self._lock = FileLock(root.lead_lock(store), blocking=False) if local else None

    @property
    def shared(self) -> bool:
        """Whether one process leads; otherwise each delivers for itself."""
        return self._lock is not None

    def taken(self) -> bool:
        """Return whether this process leads; it takes the lead where no other process has it."""
        if self._lock is None or self._lock.is_locked:
            return self._lock is not None
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Leave the lead to another process."""
        if self._lock is not None and self._lock.is_locked:
            # A process that waits for this file now, and one that makes it anew, may both lead; each run has its lock.
            delete(Path(self._lock.lock_file), within=self._root.path)
            self._lock.release()
