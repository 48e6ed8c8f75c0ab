"""Reads what a journal root still holds for delivery."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from tracking_callbacks._journal.confined import is_key
from tracking_callbacks._journal.frames import read_chunk, read_last_words
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, RunState, SessionState, is_held, session_name
from tracking_callbacks._journal.owner import watch_over
from tracking_callbacks._journal.records import (
    Artifact,
    Dataset,
    Model,
    RunEnded,
    SessionOpened,
    StoreCall,
    count_entries,
)

__all__ = ["PendingRun", "journal_root_at", "pending_run", "pending_runs", "read_opened", "unreadable_folders"]

_HEADER_BYTES = 1 << 16
_MAX_MS = 1 << 53  # MLflow's UI and JSON take a time up to here


@dataclass(frozen=True, slots=True)
class PendingRun:
    """One run whose folder is still there.

    Attributes:
        folder: Its folder under the journal root.
        opened: The header of its first journal.
        run_id: The store's id, if the store already has the run.
        pending: Number of entries that the store has not acknowledged.
        age: Seconds since the last record was written.
        alive: A process on this machine that has written to it still runs.
        open: Such a process may write more: a session of it has not ended.
        last_error: What last stopped delivery.
    """

    folder: RunFolder
    opened: SessionOpened
    run_id: str | None
    pending: int
    age: float
    alive: bool
    open: bool
    last_error: str

    @property
    def name(self) -> str:
        """What the user knows the run by."""
        return self.opened.run_name or self.run_id or self.folder.run_key

    @property
    def held(self) -> bool:
        """Whether a process delivers it at this moment."""
        return is_held(self.folder.drain_lock)

    @property
    def left(self) -> bool:
        """Whether the store lacks anything that the run holds so far: entries, or its end."""
        return self.pending > 0 or not self.open

    @property
    def in_good_hands(self) -> bool:
        """Whether the delivery process of a living trainer delivers it, and nothing stops that."""
        return self.alive and not self.last_error and self.held


def read_opened(journal: Path) -> SessionOpened | None:
    """Return the header of a journal, or None if it has none (yet) that belongs to this run and session."""
    try:
        chunk = read_chunk(journal, 0, complete=False, limit=_HEADER_BYTES)
    except OSError:
        return None
    headers = (record for record, _ in chunk.records if isinstance(record, SessionOpened))
    return next((header for header in headers if _belongs(header, journal)), None)


def _belongs(header: SessionOpened, journal: Path) -> bool:
    """Return whether a header is what this package writes to `journal`, so that no journal speaks for another run."""
    return (
        header.run_key == journal.parent.name
        and header.session == int(session_name(journal))
        and (header.parent_key is None or is_key(header.parent_key))
        and 0 <= header.timestamp < _MAX_MS
        and -(1 << 31) < header.owner.pid < 1 << 31
    )


def pending_runs(root: JournalRoot) -> list[PendingRun]:
    """Return the runs under `root` that are not delivered yet, oldest first."""
    found = [run for folder in root.runs() if (run := pending_run(folder)) is not None]
    return sorted(found, key=lambda run: run.opened.timestamp)


def pending_run(folder: RunFolder) -> PendingRun | None:
    """Return what is left to deliver of one run, or None if no journal of it can be read."""
    state = folder.read_state() or RunState()
    headers: list[SessionOpened] = []
    pending, newest, alive, open_ = 0, 0.0, False, False
    for journal in folder.journals():
        if (opened := read_opened(journal)) is None:
            continue
        done = state.sessions.get(session_name(journal), SessionState())
        try:
            entries, ended = _unacknowledged(journal, done)
            newest = max(newest, journal.stat().st_mtime)
        except OSError:  # already delivered
            continue
        headers.append(opened)
        pending += entries
        if _alive(opened, journal):
            alive, open_ = True, open_ or not (ended or done.ended is not None)
    if not headers:
        return None
    return PendingRun(
        folder=folder,
        opened=headers[0],
        run_id=state.run_id,
        pending=pending,
        age=max(time.time() - newest, 0.0),
        alive=alive,
        open=open_,
        last_error=state.last_error,
    )


def unreadable_folders(root: JournalRoot) -> list[Path]:
    """Return the folders under `root` that hold journals of which not one can be read."""
    found = []
    for folder in root.runs():
        with contextlib.suppress(FileNotFoundError):  # it has just been delivered
            journals = [journal for journal in folder.journals() if journal.stat().st_size]
            if journals and all(read_opened(journal) is None for journal in journals) and folder.path.exists():
                found.append(folder.path)
    return found


def journal_root_at(path: Path) -> JournalRoot:
    """Return the journal root that `path` names: the root itself, or the project folder that holds it."""
    inner = path / ".tracking_callbacks"
    return JournalRoot(inner if inner.is_dir() else path)


def _unacknowledged(journal: Path, state: SessionState) -> tuple[int, bool]:
    """Return how many entries of a journal the store lacks, and whether the journal's end record is among the rest."""
    count, ended = 0, isinstance(read_last_words(journal), RunEnded)
    offset = min(state.points, state.files)
    while True:
        chunk = read_chunk(journal, offset, complete=False)
        for record, end in chunk.records:
            lane = state.files if isinstance(record, (Artifact, Dataset, Model, StoreCall)) else state.points
            count += count_entries(record) if end > lane else 0
            ended = ended or isinstance(record, RunEnded)
        offset = chunk.end
        if chunk.at_end or not chunk.records:
            return count, ended


def _alive(opened: SessionOpened, journal: Path) -> bool:
    watch = watch_over(opened.owner, journal)
    try:
        return watch.alive()
    finally:
        watch.close()
