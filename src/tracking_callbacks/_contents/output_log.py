"""The output of a training process, in a file that delivery uploads as it grows.

The descriptors 1 and 2 lead into pipes (where they led to a terminal, into a terminal of our own) as long as a run
records its output. Another process reads them, passes everything on, and records it (`output_reader`). If that process
is killed, a thread here puts the descriptors back and passes on what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import select
import socket
import subprocess
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking_callbacks._contents.output_text import IN_HAND_BYTES

__all__ = ["OutputLog"]

logger = logging.getLogger(__name__)

_NAME = "output.log"
_PIPE_BYTES = 1 << 20
_ANSWER_SECONDS = 5.0
_PASS_ON_SECONDS = 2.0
_LOOK_SECONDS = 0.002
_REST_MS = 20  # for the rest of a line that a terminal has given in part
# Isolated, because it needs nothing but this package and the standard library, and starts in 20 ms then.
_ENTRY = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from tracking_callbacks._contents.output_reader import main; main(*sys.argv[2:])"
)

_Identity = tuple[int, int]


class OutputLog:
    """The output of one run: what this process and its children write to stdout and stderr.

    All runs of the process that record their output at the same time share what reads it. Forked children write to the
    log, but do not end it.

    Args:
        folder: Folder for the files; it may not exist yet.
        errors: File for the errors of the process that reads.

    Raises:
        OSError: The output cannot be read.
    """

    def __init__(self, folder: Path, *, errors: Path) -> None:
        global _capture  # noqa: PLW0603 - a process has one stdout
        self._path = folder / _NAME
        with _lock:
            if _capture is None or not _capture.works:
                _capture = _Capture(errors)
            self._capture = _capture
            self._capture.open(self._path)

    def add_error(self, error: BaseException) -> None:
        """Add a traceback, as Python may print it when nothing is recorded any more."""
        with _lock:
            self._capture.add_error(error)

    def close(self) -> None:
        """Wait until everything that was written has been passed on and recorded, and stop recording."""
        global _capture  # noqa: PLW0603
        with _lock:
            if self._capture.close(self._path) and _capture is self._capture:
                _capture = None


@dataclass
class _Stream:
    """One of the streams.

    Attributes:
        fds: The descriptors that lead into it.
        target: Where they led before, -1 for nowhere.
        source: Where it is read.
        entry: Where it is written.
        outer: What `target` is.
        inner: What `entry` is.
        in_hand: Memory of the process that reads.
    """

    fds: tuple[int, ...]
    target: int
    source: int
    entry: int
    outer: _Identity | None
    inner: _Identity | None
    in_hand: int

    def close(self) -> None:
        """Close what this process needs no more."""
        _close(self.target, self.source, self.in_hand)


class _Patch:
    """Lets `take` receive what is written to a stream."""

    def __init__(self, stream: Any, take: Callable[[str], None]) -> None:
        self.stream = stream
        self._replaced = vars(stream).get("write")
        original = stream.write

        def write(text: str) -> Any:
            written = original(text)
            take(text)
            return written

        self._write = stream.write = write

    def stands(self) -> bool:
        """Return whether no other patch has taken its place."""
        return vars(self.stream).get("write") is self._write

    def undo(self) -> None:
        """Leave the stream as it was before."""
        if self.stands():
            del self.stream.write
            if self._replaced is not None:
                self.stream.write = self._replaced


class _Capture:
    """What leads stdout and stderr to the process that reads them.

    Attributes:
        works: That process has not ended.
    """

    def __init__(self, errors: Path) -> None:
        self.works = True
        self._pid = os.getpid()
        self._paths: list[Path] = []
        self._patches: list[_Patch] = []
        self._text: int | None = None
        self._last_error = (0, "")
        self._passing_on = threading.Lock()
        self._direct = threading.Event()
        _flush()
        self._streams = _streams()
        pair = socket.socketpair()
        self._control, theirs = (socket.socket(fileno=_high(one.detach())) for one in pair)
        try:
            with theirs:
                self._process = _start(errors, theirs.fileno(), self._streams)
        except OSError:
            self._control.close()
            for stream in self._streams:
                stream.close()
                _close(stream.entry)
            raise
        for stream in self._streams:
            for fd in stream.fds:
                os.dup2(stream.entry, fd)
            if stream.fds:
                _close(stream.entry)
            else:
                self._text = stream.entry
        if self._text is not None:
            self._patch_streams()
            if (shell := _notebook()) is not None:
                shell.events.register("pre_run_cell", self._patch_streams)
        threading.Thread(target=self._watch, name="tracking_callbacks output", daemon=True).start()

    def open(self, path: Path) -> None:
        """Record to this file, too."""
        if self._paths:
            _flush()
        # What was written before belongs to the other files only.
        self._ask(b"+" + os.fsencode(path), answer=bool(self._paths))
        self._paths.append(path)

    def add_error(self, error: BaseException) -> None:
        """Add a traceback to the files; a run within another one has added that of both."""
        if self._last_error != (id(error), repr(error)):
            self._last_error = (id(error), repr(error))
            _flush()
            text = "".join(traceback.format_exception(error))
            self._ask(b"!" + text.replace("\0", "").encode(errors="replace"))

    def close(self, path: Path) -> bool:
        """Finish a file; return whether it was the last one, and the descriptors are what they were before."""
        if os.getpid() != self._pid or path not in self._paths:
            return False
        _flush()
        self._ask(b"-" + os.fsencode(path), answer=True)
        if not self.works:
            self._wait_until_passed_on()
        self._paths.remove(path)
        if self._paths:
            return False
        self._put_back()
        self._control.close()
        return True

    def forget(self) -> None:
        """Let go, in a forked child, of what keeps its siblings from seeing an end."""
        with contextlib.suppress(OSError):
            self._control.close()
        for stream in self._streams:
            stream.close()

    def _ask(self, request: bytes, *, answer: bool = False) -> None:
        with contextlib.suppress(OSError):  # it was killed, or its terminal is stopped
            self._control.settimeout(_ANSWER_SECONDS)
            self._control.sendall(request + b"\0", socket.MSG_NOSIGNAL)
            if answer:
                self._control.recv(1)

    def _patch_streams(self, *_: object) -> None:
        """Receive what is written to streams of Python's; IPython undoes it at the end of each cell."""
        self._patches = [patch for patch in self._patches if patch.stands()]
        there = [patch.stream for patch in self._patches]
        streams = [stream for stream in _streams_of_their_own() if not any(stream is other for other in there)]
        self._patches += [_Patch(stream, self._write_text) for stream in streams]

    def _write_text(self, text: str) -> None:
        if (fd := self._text) is not None:
            _write(fd, text.encode(errors="replace"))

    def _put_back(self) -> None:
        with self._passing_on:
            self._put_back_now()

    def _put_back_now(self) -> None:
        for stream in self._streams:
            for fd in stream.fds:
                # What the program has put there, or here, meanwhile is left alone.
                if _identity(fd) == stream.inner and _identity(stream.target) == stream.outer:
                    os.dup2(stream.target, fd)
        if self._text is not None:
            for patch in self._patches:
                patch.undo()
            if (shell := _notebook()) is not None:
                with contextlib.suppress(ValueError):
                    shell.events.unregister("pre_run_cell", self._patch_streams)
            _close(self._text)
            self._text = None

    # -- in a thread -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._process.wait()
        self.works = False
        cut_off = bool(self._paths)
        with self._passing_on:
            self._pass_on_in_hand()
        self._pass_on(until=time.monotonic() + _PASS_ON_SECONDS)  # else lines would be torn
        self._put_back()
        if cut_off:
            logger.warning("the process that records the output has ended; the run goes on without it")
        self._direct.set()
        self._pass_on()
        for stream in self._streams:
            stream.close()

    def _pass_on_in_hand(self) -> None:
        """Pass on what the process had read when it was killed."""
        for stream in self._streams:
            if stream.fds:
                _write(stream.target, os.read(stream.in_hand, IN_HAND_BYTES).rstrip(b"\0"))

    def _pass_on(self, until: float | None = None) -> None:
        """Pass on what is written, until there is nothing for a moment or a time has come, by default until the end."""
        sources = {stream.source: stream.target for stream in self._streams if stream.fds}
        poll = select.poll()
        for source in sources:
            poll.register(source, select.POLLIN)
        while sources and (until is None or time.monotonic() < until):
            ready = poll.poll(None if until is None else 0)
            if not ready:
                return
            for source, _ in ready:
                with self._passing_on:
                    content, ended = _read(source)
                    _write(sources[source], content)
                if ended:
                    poll.unregister(source)
                    del sources[source]

    def _wait_until_passed_on(self) -> None:
        """Wait for the thread that passes on what is left, because this process may end."""
        self._direct.wait(_ANSWER_SECONDS)
        poll = select.poll()
        for stream in self._streams:
            if stream.fds:
                poll.register(stream.source, select.POLLIN)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline and any(event & select.POLLIN for _, event in poll.poll(0)):
            time.sleep(_LOOK_SECONDS)
        if self._passing_on.acquire(timeout=max(deadline - time.monotonic(), 0)):
            self._passing_on.release()


_capture: _Capture | None = None
_lock = threading.RLock()


def _forget() -> None:
    global _capture, _lock  # noqa: PLW0603
    _lock = threading.RLock()  # another thread may have held it
    if _capture is not None:
        _capture.forget()
        _capture = None


os.register_at_fork(after_in_child=_forget)


def _start(errors: Path, control: int, streams: list[_Stream]) -> subprocess.Popen[bytes]:
    """Start the process that reads.

    It gets a session for itself, so that what ends or stops the training's group leaves it the last words, and the
    training's priority, because it stands between a print and the terminal.
    """
    if not sys.executable:
        raise OSError("sys.executable is empty")
    ends = [(stream.source, stream.target, stream.in_hand) for stream in streams]
    arguments = [str(os.getpid()), str(control), *(":".join(map(str, fds)) for fds in ends)]
    inherited = [control, *(fd for fds in ends for fd in fds if fd >= 0)]
    options = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    with open(errors, "ab") as log:
        return subprocess.Popen(
            [sys.executable, *options, "-c", _ENTRY, str(Path(__file__).parents[2]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            pass_fds=inherited,
            start_new_session=True,
        )


def _streams() -> list[_Stream]:
    """Return the streams of this process: one where stdout and stderr lead to the same place, so that order is kept."""
    if not hasattr(os, "memfd_create"):
        raise OSError("it takes Linux")
    found: dict[_Identity, list[int]] = {}
    for fd in (1, 2):
        identity = _identity(fd)
        if identity is not None and os.get_inheritable(fd):  # else it was closed, and is another file now
            found.setdefault(identity, []).append(fd)
    streams = []
    for outer, fds in found.items():
        target = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, 3)
        source, entry = _terminal_like(target) if os.isatty(target) else _pipe()
        in_hand = _high(os.memfd_create("output"))
        os.ftruncate(in_hand, IN_HAND_BYTES)
        streams.append(_Stream(tuple(fds), target, source, entry, outer, _identity(entry), in_hand))
    if _streams_of_their_own():
        streams.append(_Stream((), -1, *_pipe(), None, None, -1))
    return streams


def _terminal_like(target: int) -> tuple[int, int]:
    """Return the two ends of a terminal that looks like the user's and changes nothing."""
    master, slave = map(_high, os.openpty())
    os.set_blocking(master, False)
    attributes = termios.tcgetattr(target)
    attributes[1] &= ~termios.OPOST  # the user's makes a line feed a new line
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    with contextlib.suppress(OSError):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, fcntl.ioctl(target, termios.TIOCGWINSZ, bytes(8)))
    return master, slave


def _pipe() -> tuple[int, int]:
    source, entry = map(_high, os.pipe())
    os.set_blocking(source, False)
    with contextlib.suppress(OSError, AttributeError):  # the user has many large pipes; not Linux
        fcntl.fcntl(entry, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return source, entry


def _streams_of_their_own() -> list[Any]:
    """Return `sys.stdout` and `sys.stderr` where they do not write to 1 and 2, as in notebooks and tests."""
    found = []
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOBase) or not hasattr(stream, "__dict__"):
            continue  # what imitates a stream usually writes to one as well
        try:
            leads_to: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            leads_to = None
        wraps = any(value in (sys.__stdout__, sys.__stderr__) for value in vars(stream).values() if value is not None)
        if leads_to not in (1, 2) and not wraps:
            found.append(stream)
    return found


def _notebook() -> Any:
    """Return IPython's shell, if this is one."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _flush() -> None:
    """Empty the buffers of Python and C, so that nothing ends up on the wrong side of a run's begin or end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import ctypes

        libc = ctypes.CDLL(None)
        libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))  # stdin may be locked by a thread that waits for input


def _identity(fd: int) -> _Identity | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _high(fd: int) -> int:
    """Return a descriptor that is none of the standard ones, whose numbers a daemon has free."""
    if fd > 2:
        return fd
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high


def _read(source: int) -> tuple[bytes, bool]:
    """Return all that can be read now, with the rest of its last line, and whether it has ended."""
    content, rested = b"", False
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while len(content) < _PIPE_BYTES:
        try:
            piece = os.read(source, _PIPE_BYTES)
        except BlockingIOError:
            if content.endswith(b"\n") or rested:
                return content, False
            rested = not poll.poll(_REST_MS)
            continue
        except OSError:  # the end of a terminal
            piece = b""
        if not piece:
            return content, True
        content += piece
    return content, False


def _write(fd: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        while content:
            content = content[os.write(fd, content) :]


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
