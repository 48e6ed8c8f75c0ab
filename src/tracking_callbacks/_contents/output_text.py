"""What a program has written, as a terminal would show it in the end, in a file that grows.

Text that was overwritten (by a carriage return, or by the cursor going up, as nested progress bars do) is replaced;
colours and other escape sequences are left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tracking_callbacks._values.secrets import MASK, mask_text

__all__ = ["IN_HAND_BYTES", "MAX_OUTPUT_BYTES", "Cursor", "OutputFile", "Page"]

MAX_OUTPUT_BYTES = 4_000_000
IN_HAND_BYTES = 4096  # that are read at a time, because a pipe that is not full takes so many at once
_NAME_BEFORE = "output.1.log"
_REACHABLE_ROWS = 100  # by a cursor that goes up; no terminal that shows bars is much higher
_MAX_COLUMNS = 10_000  # of a row; the text goes on in the next one

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x08\x0a-\x1f\x7f-\x9f]+)"
    r"|\x1b\[(?P<arguments>[0-?]*)[ -/]*(?P<command>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-Z\\`-~]"
    r"|(?P<control>[\s\S])"
)
_UNFINISHED = re.compile(r"\x1b(?:[ -/]*|\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]{0,4000}\x1b?)$")
_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?!.*-----END)")
_KEY_GOES_ON = re.compile(r"[A-Za-z0-9+/=]*|(?:Proc-Type|DEK-Info|Version|Comment): .*")


class _Row:
    """A line that can still be changed.

    Attributes:
        number: Its place among all lines.
        text: What it shows.
        changed: When it was last written to, as `Page.time`.
        in_key: A private key goes on after it.
        shown: Its text without secrets, as of the last `Page.save`.
    """

    __slots__ = ("changed", "in_key", "number", "shown", "text")

    def __init__(self, number: int) -> None:
        self.number = number
        self.text = ""
        self.changed = 0
        self.in_key = False
        self.shown = b""

    def show(self, in_key: bool) -> bool:
        """Mask the secrets of a line that may lie in a private key; return whether the next one does."""
        text = self.text.rstrip()
        goes_on = in_key and _KEY_GOES_ON.fullmatch(text.strip()) is not None
        self.in_key = goes_on or _KEY_BEGINS.search(text) is not None
        self.shown = (MASK if goes_on else mask_text(text)).encode(errors="replace") + b"\n"
        return self.in_key


class Cursor:
    """Where one of the streams writes on the page; no other writes on its lines."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.row = 0  # the index in `rows`; at their end there is no line yet
        self.column = 0
        self.unfinished = ""


class Page:
    """The last lines of several streams, in the order in which they were begun.

    Attributes:
        time: Counts what was written.
        files: Where the lines are saved.
    """

    def __init__(self) -> None:
        self.time = 0
        self.files: list[OutputFile] = []
        self._cursors: list[Cursor] = []
        self._rows: list[_Row] = []
        self._next = 0
        self._unsaved = 0  # the number of the first line that is not in the files as it is
        self._in_key = False  # a private key goes on after the lines that cannot be changed any more

    def write(self, cursor: Cursor, text: str) -> None:
        """Write as a terminal does."""
        if cursor not in self._cursors:
            self._cursors.append(cursor)
        self.time += 1
        text = cursor.unfinished + text
        cursor.unfinished = ""
        if not _CONTROL.search(text):
            self._write_lines(cursor, text)
            return
        if unfinished := _UNFINISHED.search(text):
            cursor.unfinished, text = unfinished.group(), text[: unfinished.start()]
        for token in _TOKEN.finditer(text):
            if piece := token["text"]:
                self._put(cursor, piece)
            elif command := token["command"]:
                self._obey(cursor, command, token["arguments"])
            elif control := token["control"]:
                self._control(cursor, control)

    def unsaved(self, *, present: bool) -> bool:
        """Return whether `save` has something to do."""
        return self._unsaved < self._settled(present)

    def save(self, *, present: bool = False, everything: bool = False) -> None:
        """Bring the files up to date.

        Args:
            present: The lines that are being written, too, the last of them without a line feed.
            everything: All lines, because nothing follows.
        """
        end = self._next if everything else self._settled(present)
        if everything:
            self._unsaved = min(self._unsaved, self._settled())  # it may be saved without its line feed
        at = self._unsaved - self._first
        rows = self._rows[at : end - self._first]
        if rows:
            in_key = self._rows[at - 1].in_key if at else self._in_key
            for row in rows:
                in_key = row.show(in_key)
            if rows[-1].number >= self._settled() and not (everything and rows[-1].shown != b"\n"):
                rows[-1].shown = rows[-1].shown[:-1]  # in the end: nothing in place of a bar that has been cleared
            for file in self.files:
                file.replace(at, rows, self.time)
            self._unsaved = end
        self._let_go()

    def open(self, path: Path) -> None:
        """Save what is written from now on to a file, too."""
        self.save(present=True)
        self.files.append(OutputFile(path, self.time, len(self._rows)))

    def close(self, path: Path) -> None:
        """Save everything, and close a file."""
        self.save(everything=True)
        for file in [one for one in self.files if one.path == path]:
            file.close()
            self.files.remove(file)

    # -- what moves the cursor ---------------------------------------------------------------------------------------

    def _write_lines(self, cursor: Cursor, text: str) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            self._put(cursor, line)
            self._feed(cursor)
        if rest:
            self._put(cursor, rest)

    def _put(self, cursor: Cursor, text: str) -> None:
        row = self._row(cursor)
        start, end = cursor.column, cursor.column + len(text)
        if start or end < len(row.text):
            text = row.text[:start].ljust(start) + text + row.text[end:]
        row.text = text
        cursor.column = end
        self._touch(row)
        if end > _MAX_COLUMNS:
            self._feed(cursor)

    def _row(self, cursor: Cursor) -> _Row:
        if cursor.row == len(cursor.rows):
            row = _Row(self._next)
            self._next += 1
            self._rows.append(row)
            cursor.rows.append(row)
            self._touch(row)
        return cursor.rows[cursor.row]

    def _touch(self, row: _Row) -> None:
        row.changed = self.time
        self._unsaved = min(self._unsaved, row.number)

    def _feed(self, cursor: Cursor) -> None:
        self._touch(self._row(cursor))  # its line feed may be new in the files
        cursor.row += 1
        cursor.column = 0

    def _control(self, cursor: Cursor, control: str) -> None:
        if control == "\n":
            self._feed(cursor)
        elif control == "\r":
            cursor.column = 0
        elif control == "\b":
            cursor.column = max(cursor.column - 1, 0)

    def _obey(self, cursor: Cursor, command: str, arguments: str) -> None:
        first = arguments.partition(";")[0]
        given = int(first[:4]) if first.isdecimal() else 0
        count = given or 1
        if command in "AF":
            cursor.row = max(cursor.row - count, 0)
        elif command in "BE":
            cursor.row = min(cursor.row + count, len(cursor.rows))
        elif command == "C":
            cursor.column += count
        elif command == "D":
            cursor.column = max(cursor.column - count, 0)
        elif command == "G":
            cursor.column = count - 1
        elif command in "JK" and cursor.row < len(cursor.rows):
            self._erase(cursor, command, given)
        if command in "EF":
            cursor.column = 0

    def _erase(self, cursor: Cursor, command: str, what: int) -> None:
        row = cursor.rows[cursor.row]
        if command == "K" and what:
            row.text = "" if what == 2 else " " * cursor.column + row.text[cursor.column :]
        elif not what:
            row.text = row.text[: cursor.column]
            for below in cursor.rows[cursor.row + 1 :] if command == "J" else ():
                below.text = ""
                self._touch(below)
        self._touch(row)

    # -- which lines can still change --------------------------------------------------------------------------------

    @property
    def _first(self) -> int:
        return self._next - len(self._rows)

    def _settled(self, present: bool = False) -> int:
        """Return the number of the first line that a cursor is on (or, if `present`, above), else that of the next."""
        there = ((cursor.rows, cursor.row + present) for cursor in self._cursors)
        return min((rows[row].number for rows, row in there if row < len(rows)), default=self._next)

    def _let_go(self) -> None:
        """Forget the lines that no cursor reaches any more."""
        surplus = min(len(self._rows) - _REACHABLE_ROWS, self._unsaved - self._first)
        if surplus < _REACHABLE_ROWS:
            return
        self._in_key = self._rows[surplus - 1].in_key
        del self._rows[:surplus]
        for file in self.files:
            file.let_go(surplus)
        for cursor in self._cursors:
            gone = sum(row.number < self._first for row in cursor.rows)
            del cursor.rows[:gone]
            if cursor.row < gone:
                cursor.column = 0
            cursor.row = max(cursor.row - gone, 0)


class OutputFile:
    """The lines that were written since a time, in a file of bounded size.

    A full file is renamed to ``output.1.log``, replacing the previous one, and a new file is started. The file is
    locked as long as it is written to, so that delivery knows when it is complete.

    Args:
        path: The file; its folder may not exist yet.
        since: The time, as `Page.time`.
        rows: How many lines the page has.
    """

    def __init__(self, path: Path, since: int, rows: int) -> None:
        self.path = path
        self._since = since
        self._starts = [0] * rows  # where each line of the page begins
        self._size = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = self._open()

    def replace(self, index: int, rows: Iterable[_Row], time: int) -> None:
        """Replace the lines of the page from `index` on; what a full disk does not take is lost."""
        start = self._starts[index] if index < len(self._starts) else self._size
        content = bytearray()
        del self._starts[index:]
        for row in rows:
            self._starts.append(start + len(content))
            if row.changed > self._since:
                content += row.shown
        try:
            if start + len(content) > MAX_OUTPUT_BYTES and start:
                os.ftruncate(self._fd, start)
                os.replace(self.path, self.path.with_name(_NAME_BEFORE))
                os.close(self._fd)
                self._fd = self._open()
                self._starts = [max(begin - start, 0) for begin in self._starts]
                start = 0
            os.ftruncate(self._fd, start)
            self._size = start
            self._size += os.pwrite(self._fd, content[:MAX_OUTPUT_BYTES], start)
        except OSError:
            self._since = time
        self._starts = [min(begin, self._size) for begin in self._starts]

    def let_go(self, count: int) -> None:
        """Forget the first lines of the page."""
        del self._starts[:count]

    def close(self) -> None:
        """Close the file, which is complete then."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
