"""Append and read records; crash safety lives here and nowhere else.

A journal is one append-only file. A record is a frame: marker, length, checksum, payload. Each append is one
``os.write``, so what a ``log_*`` call accepted survives SIGKILL of every process. A reader that meets damage looks for
the next marker, so one flipped byte costs one record.

Next to each journal is a small file of zeros that reserves space for the journal's last record. If the disk is full
when a run ends, the run can still record how it ended.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import msgspec

from tracking_callbacks._journal.confined import open_own, read_own
from tracking_callbacks._journal.owner import lock_journal
from tracking_callbacks._journal.records import Record, decode, encode

__all__ = ["MAX_RECORD_BYTES", "Chunk", "JournalWriter", "read_chunk", "read_last_words", "read_records"]

MARKER = b"\xf5TC\x9e"  # 0xf5 never occurs in UTF-8, so no text in a payload holds the marker
MAX_RECORD_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">4sII")
_CHUNK_BYTES = 1 << 20
_LAST_WORDS_SUFFIX = ".last"
_LAST_WORDS_BYTES = 256


class JournalWriter:
    """Appends records to one journal. It is not thread-safe: its owner holds a lock.

    Attributes:
        path: The journal's file.
        position: Bytes in the journal after the last whole record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        lock_journal(self._fd)
        self._reserve_last_words()

    def append(self, record: Record) -> None:
        """Write one record with one system call.

        Raises:
            OSError: The record could not be written whole (disk full, …); records already in the journal are intact.
            ValueError: The journal is closed, or the record is larger than `MAX_RECORD_BYTES`.
        """
        frame = _frame(record)
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        written = 0
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError:
            if written:
                os.ftruncate(self._fd, self.position)  # cut the torn frame off
            raise
        self.position += written

    def append_last(self, record: Record) -> None:
        """Write the record that ends the journal, into the reserved file if the disk is full.

        Raises:
            OSError: The record could not be written there either.
            ValueError: The journal is closed.
        """
        try:
            self.append(record)
        except OSError:
            with open(self.path.with_suffix(_LAST_WORDS_SUFFIX), "r+b", buffering=0) as reserved:
                reserved.write(_frame(record))  # overwriting the zeros needs no new disk block

    def close(self) -> None:
        """Seal the journal: nothing more can be appended."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _reserve_last_words(self) -> None:
        with contextlib.suppress(OSError):  # the disk is already full
            reserved = os.open(
                self.path.with_suffix(_LAST_WORDS_SUFFIX), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(reserved, bytes(_LAST_WORDS_BYTES))
            finally:
                os.close(reserved)


def read_last_words(path: Path) -> Record | None:
    """Return the last record of the journal at `path` if it had to be written to the reserved file next to it."""
    try:
        content = read_own(path.with_suffix(_LAST_WORDS_SUFFIX), _LAST_WORDS_BYTES)
    except OSError:  # a journal of an older version, or one that is already delivered
        return None
    marker, length, checksum = _HEADER.unpack_from(content) if len(content) >= _HEADER.size else (b"", 0, 0)
    payload = content[_HEADER.size : _HEADER.size + length]
    if marker != MARKER or crc32(payload) != checksum:
        return None
    try:
        record: Record = decode(payload)
    except msgspec.MsgspecError:
        return None
    return record


def _frame(record: Record) -> bytes:
    payload = encode(record)
    size = len(payload)
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"the record is too large: {size} bytes, a journal takes up to {MAX_RECORD_BYTES}")
    return _HEADER.pack(MARKER, size, crc32(payload)) + payload


@dataclass(slots=True)
class Chunk:
    """Records read from one stretch of a journal.

    Attributes:
        records: Each record with the offset of its end.
        end: Offset at which to continue reading.
        damaged: Number of stretches that held no readable record.
        at_end: Nothing more can be read for now.
    """

    records: list[tuple[Record, int]] = field(default_factory=list)
    end: int = 0
    damaged: int = 0
    at_end: bool = False


def read_chunk(path: Path, offset: int, *, complete: bool, limit: int = _CHUNK_BYTES) -> Chunk:
    """Read the records that begin at `offset` or later, about `limit` bytes of them.

    Args:
        path: The journal.
        offset: Where the previous chunk ended.
        complete: No process writes to the journal any more, so an unfinished last frame is damage, not a write in
            progress.
        limit: Bytes to read; a record that is larger is still read whole.
    """
    with open(open_own(path, os.O_RDONLY), "rb", buffering=0) as journal:
        size = os.fstat(journal.fileno()).st_size
        window = _Window(journal.fileno(), offset, limit, size)
        position = offset
        damage_from: int | None = None
        if not window.holds_a_frame() and window.end < size:
            damage_from, position = offset, _next_frame(journal.fileno(), offset + 1, size)
            window = _Window(journal.fileno(), position, limit, size)
    chunk = Chunk(end=offset)
    while True:
        frame = window.frame_at(position)
        if frame is not None:
            record, position = frame
            if damage_from is not None:
                chunk.damaged += 1
                damage_from = None
            if record is None:  # an intact frame, but of a kind that this version does not know
                chunk.damaged += 1
            else:
                chunk.records.append((record, position))
            chunk.end = position
            if position - offset >= limit:
                chunk.at_end = position >= size
                return chunk
            continue
        following = window.next_frame_after(position)
        if following is not None:
            damage_from = position
            position = following
            continue
        chunk.at_end = window.end == size
        if chunk.at_end and complete and chunk.end < size:
            chunk.damaged += 1
            chunk.end = size
        return chunk


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield what a journal holds from `offset` on, as far as it is written, each record with the offset of its end."""
    at_end = False
    while not at_end:
        chunk = read_chunk(path, offset, complete=False)
        yield from chunk.records
        offset, at_end = chunk.end, chunk.at_end or not chunk.records


class _Window:
    """Some bytes of a journal from one offset on; the record that begins there is in view even when it is larger."""

    def __init__(self, fd: int, start: int, length: int, size: int) -> None:
        self._start = start
        self._size = size
        self._bytes = _read_at(fd, start, min(length, size - start))
        if (needed := self._largest_need()) > length:
            self._bytes += _read_at(fd, start + len(self._bytes), needed - len(self._bytes))

    @property
    def end(self) -> int:
        """Offset in the journal at which the view ends."""
        return self._start + len(self._bytes)

    def _largest_need(self) -> int:
        """Bytes from the start up to the end of the first frame, as its header claims."""
        if len(self._bytes) >= _HEADER.size:
            marker, length, _ = _HEADER.unpack_from(self._bytes)
            if marker == MARKER and length <= MAX_RECORD_BYTES:
                return min(_HEADER.size + int(length), self._size - self._start)
        return 0

    def holds_a_frame(self) -> bool:
        """Return whether an intact frame is in view."""
        return self.frame_at(self._start) is not None or self.next_frame_after(self._start) is not None

    def frame_at(self, position: int) -> tuple[Record | None, int] | None:
        """Return the record at `position` and its end; None if there is no intact frame in view."""
        at = position - self._start
        if at + _HEADER.size > len(self._bytes):
            return None
        marker, length, checksum = _HEADER.unpack_from(self._bytes, at)
        end = at + _HEADER.size + length
        if marker != MARKER or not 0 < length <= MAX_RECORD_BYTES or end > len(self._bytes):  # 0: zeros pass as intact
            return None
        payload = self._bytes[at + _HEADER.size : end]
        if crc32(payload) != checksum:
            return None
        try:
            return decode(payload), self._start + end
        except msgspec.MsgspecError:
            return None, self._start + end

    def next_frame_after(self, position: int) -> int | None:
        """Return where the next intact frame in view begins."""
        at = self._bytes.find(MARKER, position - self._start + 1)
        while at >= 0:
            if self.frame_at(self._start + at) is not None:
                return self._start + at
            at = self._bytes.find(MARKER, at + 1)
        return None


def _next_frame(fd: int, start: int, size: int) -> int:
    """Return where the next intact frame begins, or `size`; at most a block and a record are in memory at a time."""
    while start < size:
        block = _read_at(fd, start, _CHUNK_BYTES + len(MARKER) - 1)
        at = block.find(MARKER)
        while at >= 0:
            if _Window(fd, start + at, _HEADER.size, size).frame_at(start + at) is not None:
                return start + at
            at = block.find(MARKER, at + 1)
        start += _CHUNK_BYTES
    return size


def _read_at(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)
