"""The process between a training process's stdout and stderr and its terminal: passes everything on, and records it.

It outlives the training process, so what that has written before its death arrives, and it reads until the last child
has closed its end, as ``tee`` does. It imports next to nothing, because it runs next to every training process.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import mmap
import os
import select
import signal
import stat
import termios
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tracking_callbacks._contents.output_text import IN_HAND_BYTES, Cursor, Page

__all__ = ["main"]

_HELD = 2 << 20  # more than any pipe holds
_SAVE_SECONDS = 0.1
_PRESENT_SECONDS = 1.0  # for a line without a line feed: a bar, or half of a secret
_SIZE_SECONDS = 0.2
_BACKLOG = 200_000  # characters, after which lines are saved at once


def main(trainer: str, control: str, *streams: str) -> None:
    """Pass on and record until all writers have closed their ends.

    Args:
        trainer: The process id of the training process.
        control: A socket to it.
        streams: Of each stream, the end to read, the terminal to write to and the file for what is in hand: ``5:7:9``;
            ``5:-1:-1`` has no terminal.
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(name, signal.SIG_IGN)  # what stops a job signals all its processes; the last words come after
    _Reader(int(trainer), int(control), [_Stream(*map(int, stream.split(":"))) for stream in streams]).run()


class _Stream:
    """One of the streams.

    What has been read lies in memory that the training process shares. Up to the position of that file it has been
    passed on, and zeros follow it. So nothing is lost if we are killed at any moment. A terminal gets nothing twice
    either, because the kernel moves the position in the call that writes.

    Attributes:
        source: Where it is read.
        target: Where it is passed on; -1 for nowhere.
        is_terminal: It comes from a terminal of ours and goes to the user's.
        ended: All writers have closed their ends.
        cursor: Where it writes on the page.
        decoder: Makes it text.
    """

    def __init__(self, source: int, target: int = -1, in_hand: int = -1) -> None:
        self.source = source
        self.target = _without_blocking(target)
        self.is_terminal = target >= 0 and os.isatty(source)
        self.ended = False
        self._in_hand = in_hand
        self._memory = mmap.mmap(in_hand, IN_HAND_BYTES) if in_hand >= 0 else mmap.mmap(-1, IN_HAND_BYTES)
        self._left = 0  # in hand
        self._queue = bytearray()  # behind it, where a terminal takes nothing and the recording must end
        self.cursor = Cursor()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def waits(self) -> bool:
        """Whether the terminal has not taken everything yet; nothing is read as long as that lasts."""
        return bool(self._left or self._queue)

    def read(self) -> bytes | None:
        """Read what there is and pass it on; None means that nothing is there now."""
        try:
            if self.waits:
                content = os.read(self.source, IN_HAND_BYTES)
                self._queue += content
            else:
                self._left = os.readv(self.source, [self._memory])
                content = self._memory[: self._left]
        except BlockingIOError:
            return None
        except OSError:  # the end of a terminal
            content = b""
        self.ended = not content
        self.pass_on()
        return content

    def pass_on(self) -> None:
        """Write as much as the terminal takes; what a terminal that is gone, or a full disk, does not take is lost."""
        with contextlib.suppress(BlockingIOError):
            while self._left:
                self._left -= self._send()
                if not self._left:
                    self._memory[:] = bytes(IN_HAND_BYTES)
                    if self._in_hand >= 0:
                        os.lseek(self._in_hand, 0, os.SEEK_SET)
            while self._queue:
                del self._queue[: _written(self.target, self._queue)]

    def _send(self) -> int:
        if self.target < 0:
            return self._left
        if self.is_terminal:  # a pipe or socket would refer to our memory, not copy it
            try:
                return os.sendfile(self.target, self._in_hand, None, self._left)
            except BlockingIOError:
                raise
            except OSError:  # an old kernel, or a terminal that is gone
                pass
        start = os.lseek(self._in_hand, 0, os.SEEK_CUR)
        written = _written(self.target, self._memory[start : start + self._left])
        os.lseek(self._in_hand, written, os.SEEK_CUR)
        return written

    def adopt_size(self) -> bool:
        """Give our terminal the size of the user's; return whether that is another one than before."""
        if not self.is_terminal:
            return False
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self.target, termios.TIOCGWINSZ, bytes(8))
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
                if stream.source in ready and not stream.waits:
                    self._read(stream)
            if self._attached and (self._pidfd in ready or os.getppid() != self._trainer):
                self._detach()
            self._streams = [stream for stream in self._streams if stream.waits or not stream.ended]
            self._save_due()
            if self._answers and not any(stream.waits for stream in self._streams):
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
            if stream.waits:
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
            for _ in range(_HELD // IN_HAND_BYTES):
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


def _written(target: int, content: bytes | bytearray) -> int:
    """Write to a terminal, and return how much it has taken or refused for good."""
    try:
        return os.write(target, content)
    except BlockingIOError:
        raise
    except OSError:
        return len(content)


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
