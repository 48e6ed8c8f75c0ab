"""Uploads files that grow during a run, such as its log, again each time they have grown."""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._journal.confined import OutsideError, delete, inside
from tracking_callbacks._journal.layout import JournalRoot, RunFolder
from tracking_callbacks._journal.owner import is_locked

__all__ = ["LiveFiles"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_UPLOAD_SECONDS = 10.0  # between two uploads of a file, plus the same again for each MB of it
_WRITER_SECONDS = 10.0  # that the process which records the output may take after the end of a session


class LiveFiles:
    """The live files of one run.

    Each upload sends the whole file from a copy, because its writer may go on meanwhile. Past uploads are
    remembered in memory only, so a new delivery process uploads every file once more.

    Args:
        folder: The run's folder.
        root: The journal root that contains it.
        store: The store that has the run.
    """

    def __init__(self, folder: RunFolder, root: JournalRoot, store: Store) -> None:
        self._folder = folder
        self._root = root
        self._store = store
        self._sent: dict[Path, tuple[int, int, int]] = {}  # inode, size and time of change
        self._due: dict[Path, float] = {}
        self._refused: set[Path] = set()
        self._look_at: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def upload(self, session: str, run_id: str, *, final: bool) -> bool:
        """Upload the files that have grown and are due, or all that have grown if `final`.

        Returns:
            Whether anything was done.

        Raises:
            DeliveryError: The store did not accept a file this time.
        """
        worked = False
        now = time.monotonic()
        final = final and not self._has_writer(session)
        if not final and now < self._look_at.get(session, 0.0):
            return False
        self._look_at[session] = now + _LOOK_SECONDS
        for path in self._unsent(session):
            if final or now >= self._due.get(path, 0.0):
                self._upload_one(path, self._folder.live(session), run_id, final=final)
                worked = True
        return worked

    def all_uploaded(self, session: str) -> bool:
        """Return whether the store has all live files of a session that has ended."""
        return not self._has_writer(session) and not self._unsent(session)

    def keep_refused(self) -> None:
        """Move the files that the store refused to where nothing deletes them.

        Raises:
            OSError: One cannot be moved.
        """
        for path in self._refused:
            self._root.keep_rejected(path, self._folder.run_key)

    def _has_writer(self, session: str) -> bool:
        """Return whether a process, for a while after the end of a session, still writes what was written in it."""
        since = self._ended.setdefault(session, time.monotonic())
        if time.monotonic() - since > _WRITER_SECONDS:
            return False
        return any(is_locked(path) for path in self._files(session))

    def _files(self, session: str) -> list[Path]:
        try:
            live = inside(self._folder.path, f"live/{session}")
        except OutsideError:
            return []
        # os.walk passes over a folder that its writer removes meanwhile; rglob raises.
        return sorted(Path(folder, name) for folder, _, names in os.walk(live) for name in names)

    def _unsent(self, session: str) -> list[Path]:
        return [path for path in self._files(session) if path not in self._refused and self._grew(path)]

    def _grew(self, path: Path) -> bool:
        identity = _identity(path)
        return identity is not None and self._sent.get(path) != identity

    def _upload_one(self, path: Path, root: Path, run_id: str, *, final: bool) -> None:
        place = path.relative_to(root)
        identity = _identity(path)
        source = path if final else self._copy(path, place)  # a copy needs disk space, which may be gone by then
        if identity is None or source is None:
            return
        try:
            self._store.log_artifact(run_id, source, place.parent.as_posix())
        except Refused as error:
            self._store.check_active(run_id)
            logger.warning("run %s: the store refused %s: %s", run_id, place, error)
            self._refused.add(path)
        self._sent[path] = identity
        self._due[path] = time.monotonic() + _UPLOAD_SECONDS * (1 + identity[1] / 1e6)

    def _copy(self, path: Path, place: Path) -> Path | None:
        """Return a copy of `path`, or None if it cannot be made now."""
        copy = self._folder.path / "uploading" / place
        try:
            content = path.read_bytes()
            copy.parent.mkdir(parents=True, exist_ok=True)
            delete(copy, within=self._folder.path)
            copy.write_bytes(content)
        except OSError as error:  # renamed by its writer, or a full disk: a later upload or the final one succeeds
            logger.info("cannot copy %s for upload, trying again later: %s", place, error)
            self._due[path] = time.monotonic() + _UPLOAD_SECONDS
            return None
        return copy


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and time of change of a file, or None if it does not exist."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
