"""A journal as delivery sees it: who writes to it, how far it is delivered, whether and how its session ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracking_callbacks._journal.frames import Chunk, read_chunk, read_last_words
from tracking_callbacks._journal.layout import SessionState, session_name
from tracking_callbacks._journal.owner import OwnerWatch, WriterWatch
from tracking_callbacks._journal.records import Metrics, Record, RunEnded, SessionOpened, Status, now_ms

__all__ = ["Ending", "SessionJournal", "size_of"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ended; `status` is None if the session does not decide the run's status."""

    status: Status | None
    timestamp: int


class SessionJournal:
    """One journal that is being delivered.

    Args:
        journal: The file.
        opened: Its header.
        state: How far it is delivered; changed in place.
        watch: Watch over the process that writes it. None means that the owner counts as dead.

    Attributes:
        size: Bytes in the journal as of the last `grew`.
    """

    def __init__(
        self, journal: Path, opened: SessionOpened, state: SessionState, watch: OwnerWatch | WriterWatch | None
    ) -> None:
        self.path = journal
        self.name = session_name(journal)
        self.opened = opened
        self.state = state
        self.size = 0
        self._keep_offsets_inside()
        self._watch = watch
        self._dead = watch is None
        self._last_point = 0
        self._open_until = 0

    def _keep_offsets_inside(self) -> None:
        """Start again where the state names an offset that the journal does not have; sending twice is harmless."""
        size = size_of(self.path)
        if not 0 <= self.state.points <= size:
            self.state.points = 0
        if not 0 <= self.state.files <= size:
            self.state.files = 0

    @property
    def known_finished(self) -> bool:
        """Whether the last check showed that no process writes to the journal any more."""
        return self._dead or self.state.ended is not None

    def finished(self) -> bool:
        """Return whether no process writes to the journal any more."""
        if self.state.ended is None:
            self._note_end(read_last_words(self.path))
        if self.state.ended is not None:
            return True
        if not self._dead and self._watch is not None:
            self._dead = not self._watch.alive()
        return self._dead

    def read(self, offset: int) -> Chunk:
        """Read records from `offset` on."""
        now = now_ms()
        # Check before reading: everything that a dead process wrote is in the file by then.
        chunk = read_chunk(self.path, offset, complete=self.finished())
        for record, _ in chunk.records:
            self._note_end(record)
            if isinstance(record, Metrics):
                self._last_point = record.timestamp
        if chunk.at_end and not self.known_finished:
            self._open_until = now
        return chunk

    def open_until(self) -> int:
        """Return the last time (ms since the epoch) at which the session was known to be open."""
        now = now_ms()
        if not self.finished() and not self.grew(self.state.points):
            self._open_until = now
        return self._open_until

    def _note_end(self, record: Record | None) -> None:
        if isinstance(record, RunEnded):
            self.state.ended = (record.status, record.timestamp)

    def grew(self, offset: int) -> bool:
        """Return whether the journal holds anything beyond `offset`."""
        self.size = size_of(self.path)
        return self.size > offset

    def exhausted(self) -> bool:
        """Return whether both lanes have reached the end of a journal that no process writes to any more."""
        return self.finished() and not self.grew(min(self.state.points, self.state.files))

    def ending(self) -> Ending:
        """Return how a finished session ended: as its last record says, or by its owner's death."""
        if self.state.ended is not None:
            return Ending(*self.state.ended)
        # A file system's clock ticks in steps of a few milliseconds, so it may be behind the last point.
        last_sign = max(int(self.path.stat().st_mtime * 1000), self._last_point)
        return Ending("KILLED" if self.opened.intent == "own" else None, last_sign)


def size_of(journal: Path) -> int:
    """Return the bytes in a journal, 0 where it is gone because it is delivered."""
    try:
        return journal.stat().st_size
    except FileNotFoundError:
        return 0
