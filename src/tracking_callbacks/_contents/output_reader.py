"""The process between a training process's stdout and stderr and its terminal: passes everything on, and records it.

It outlives the training process, so what that has written before its death arrives, and it reads until the last child
has closed its end, as ``tee`` does. It imports next to nothing, because it runs next to every training process.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import select
import signal
import stat
import struct
import termios
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tracking_callbacks._contents.output_text import IN_HAND_BYTES, Cursor, Page

__all__ = ["main"]

_CHUNK = 4096  # a pipe that is not full takes it at once, so no more than this is ever in our hands
_HELD = 2 << 20  # more than any pipe holds
_SAVE_SECONDS = 0.1
_PRESENT_SECONDS = 1.0  # for a line without a line feed: a bar, or half of a secret
_SIZE_SECONDS = 0.2
_BACKLOG = 200_000  # characters, after which lines are saved at once


def main(trainer: str, control: str, in_hand: str, *streams: str) -> None:
    """Pass on and record until all writers have closed their ends.

    Args:
        trainer: The process id of the training process.
        control: A socket to it.
        in_hand: A file for what has been read and not passed on, which the training process passes on if we are killed.
        streams: The end to read and the terminal to write to of each stream, ``5:7``; ``5:-1`` has no terminal.
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(name, signal.SIG_IGN)  # what stops a job signals all its processes; the last words come after
    pairs = [stream.split(":") for stream in streams]
    found = [_Stream(int(s), int(t), int(in_hand), place * IN_HAND_BYTES) for place, (s, t) in enumerate(pairs)]
    _Reader(int(trainer), int(control), found).run()


class _Stream:
    """One of the streams.

    Attributes:
        source: Where it is read.
        is_terminal: It comes from a terminal of ours and goes to the user's.
        ended: All writers have closed their ends.
        queue: What the terminal has not taken yet; as long as there is something, nothing is read.
        cursor: Where it writes on the page.
        decoder: Makes it text.
    """

    def __init__(self, source: int, target: int, in_hand: int, place: int) -> None:
        os.set_blocking(source, False)
        self.source = source
        self._in_hand = in_hand
        self._place = place
        self._target = _without_blocking(target)
        self.is_terminal = target >= 0 and os.isatty(source)
        self.ended = False
        self._is_slow = False
        self.queue = bytearray()
        self.cursor = Cursor()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def target(self) -> int:
        """Where it is passed on; -1 for nowhere."""
        return self._target

    def read(self) -> bytes | None:
        """Read what there is and pass it on; None means that nothing is there now."""
        try:
            content = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # the end of a terminal
            content = b""
        self.ended = not content
        self.queue += content
        self.pass_on()
        return content

    def pass_on(self) -> None:
        """Write as much as the terminal takes; a terminal that is gone, or a full disk, loses it."""
        if self._target < 0:
            self.queue.clear()
        while self.queue:
            try:
                written = os.write(self._target, self.queue)
            except BlockingIOError:
                break
            except OSError:
                written = len(self.queue)
            del self.queue[:written]
        if self.queue or self._is_slow:
            self._is_slow = bool(self.queue)
            with contextlib.suppress(OSError):  # a full disk
                os.pwrite(self._in_hand, struct.pack("=I", len(self.queue)) + self.queue, self._place)

    def adopt_size(self) -> bool:
        """Give our terminal the size of the user's; return whether that is another one than before."""
        if not self.is_terminal:
            return False
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._target, termios.TIOCGWINSZ, bytes(8))
            if size != fcntl.ioctl(self.source, termios.TIOCGWINSZ, bytes(8)):
                fcntl.ioctl(self.source, termios.TIOCSWINSZ, size)
                return True
        return False


class _Reader:
    def __init__(self, trainer: int, control: int, streams: list[_Stream]) -> None:
        self._trainer = trainer
        self._control = control
        os.set_blocking(control, False)
        self._streams = streams
        self._page = Page()
        self._requests = b""
        self._answers = 0
        self._backlog = 0
        self._save_at: float | None = None
        self._present_at: float | None = None
        self._pidfd = -1
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(trainer)
        self._attached = True

    def run(self) -> None:
        while self._streams or self._attached:
            ready = self._wait()
            if any(stream.adopt_size() for stream in self._streams) and self._attached:
                self._tell_size()
            if self._control in ready and not self._take_requests():
                self._detach()
            for stream in self._streams:
                if stream.target in ready:
                    stream.pass_on()
                if stream.source in ready and not stream.queue:
                    self._read(stream)
            if self._attached and (self._pidfd in ready or os.getppid() != self._trainer):
                self._detach()
            self._streams = [stream for stream in self._streams if stream.queue or not stream.ended]
            self._save_due()
            if self._answers and not any(stream.queue for stream in self._streams):
                with contextlib.suppress(OSError):
                    os.write(self._control, b"." * self._answers)
                self._answers = 0

    def _wait(self) -> set[int]:
        poll = select.poll()
        if self._attached:
            poll.register(self._control, select.POLLIN)
            if self._pidfd >= 0:
                poll.register(self._pidfd, select.POLLIN)
        for stream in self._streams:
            if stream.queue:
                poll.register(stream.target, select.POLLOUT)
            elif not stream.ended:
                poll.register(stream.source, select.POLLIN)
        now = time.monotonic()
        waits = [max(due - now, 0.0) for due in (self._save_at, self._present_at) if due is not None]
        if self._attached and (self._pidfd < 0 or any(stream.is_terminal for stream in self._streams)):
            waits.append(_SIZE_SECONDS)
        return {fd for fd, _ in poll.poll(min(waits) * 1000 + 1 if waits else None)}

    def _tell_size(self) -> None:
        """Say it again, because the kernel has done so before our terminal had the size."""
        with contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGWINCH)

    def _read(self, stream: _Stream) -> bool:
        """Read once; return whether there may be more."""
        content = stream.read()
        if content is None:
            return False
        if self._page.files:
            with self._recording():
                text = stream.decoder.decode(content, final=not content)
                self._page.write(stream.cursor, text)
                self._backlog += len(text)
        return bool(content)

    def _drain(self) -> None:
        """Read all that has been written so far, whether or not the terminals take it."""
        for stream in self._streams:
            for _ in range(_HELD // _CHUNK):
                if stream.ended or not self._read(stream):
                    break

    # -- the recording -----------------------------------------------------------------------------------------------

    def _take_requests(self) -> bool:
        """Do what the training process has asked for; return False if that was nothing."""
        content = b""
        with contextlib.suppress(OSError):
            content = os.read(self._control, 1 << 16)
        *requests, self._requests = (self._requests + content).split(b"\0")
        for request in requests:
            kind, argument = request[:1], request[1:]
            with self._recording():
                if kind != b"+" or self._page.files:
                    self._drain()
                    self._answers += kind != b"!"
                if kind == b"+":
                    self._page.open(Path(os.fsdecode(argument)))
                elif kind == b"!":
                    self._page.write(Cursor(), argument.decode(errors="replace"))
                elif kind == b"-":
                    self._page.close(Path(os.fsdecode(argument)))
        return bool(content)

    def _detach(self) -> None:
        """Finish the recording: the training process has ended, or has become another program."""
        self._attached = False
        while self._take_requests():
            pass
        self._drain()
        with self._recording():
            for file in list(self._page.files):
                self._page.close(file.path)

    def _save_due(self) -> None:
        now = time.monotonic()
        with self._recording():
            if self._backlog > _BACKLOG or (self._save_at is not None and now >= self._save_at):
                self._page.save()
                self._backlog, self._save_at = 0, None
            elif self._save_at is None and self._page.unsaved(present=False):
                self._save_at = now + _SAVE_SECONDS
            if self._present_at is not None and now >= self._present_at:
                self._page.save(present=True)
                self._present_at = None
            elif self._present_at is None and self._page.unsaved(present=True):
                self._present_at = now + _PRESENT_SECONDS

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Give the recording up where it fails: what the user sees must go on."""
        try:
            yield
        except Exception:  # noqa: BLE001 - the only one in this process
            traceback.print_exc()
            for file in self._page.files:
                file.close()
            self._page = Page()
            self._save_at = self._present_at = None


def _without_blocking(target: int) -> int:
    """Return a description of our own of a terminal or pipe, which does not block, else `target`.

    The one that we have inherited is shared with the shell, which must not find it changed.
    """
    if target >= 0 and (stat.S_ISFIFO(os.fstat(target).st_mode) or os.isatty(target)):
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/self/fd/{target}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            os.close(target)
            return fd
    return target
