"""Whether delivery gets on: finished steps count, and so do the bytes of a file that takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Progress", "on_sending"]

_BYTES = (bytes, bytearray, memoryview)


class Progress:
    """When a delivery process last got on.

    An upload that fails and begins again gets on only where it sends more than every attempt before it. So a store that
    takes the first bytes and then hangs does not look like one that works.

    Attributes:
        moved: Time of the last progress, in monotonic seconds.
        uploading: Key of the run whose files are being sent; None means none is.
    """

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self.uploading: str | None = None
        self._sent = 0
        self._most: dict[str, int] = {}

    def finish_step(self) -> None:
        """Note that something was delivered."""
        self.moved = time.monotonic()

    def begin_upload(self, run_key: str) -> None:
        """Note that another attempt to send a run's next files begins."""
        self.uploading, self._sent = run_key, 0

    def end_upload(self, *, delivered: bool) -> None:
        """Note that the attempt has ended; what follows a delivered file is counted from zero."""
        if delivered and self.uploading is not None:
            self._most.pop(self.uploading, None)
        self.uploading = None

    def watch_sending(self) -> None:
        """Count what this process sends over HTTP from now on, in any thread but the calling one."""
        here = threading.get_ident()
        on_sending(lambda size: None if threading.get_ident() == here else self.add(size))

    def add(self, size: int) -> None:
        """Count bytes of the upload that is under way."""
        if (run_key := self.uploading) is None:
            return
        self._sent += size
        if self._sent > self._most.get(run_key, 0):
            self._most[run_key] = self._sent
            self.moved = time.monotonic()


def on_sending(sent: Callable[[int], None]) -> None:
    """Call `sent` from now on with the size of each block that this process sends over HTTP.

    The interpreter raises the audit event ``http.client.send`` once per block of a body:
    https://docs.python.org/3/library/audit_events.html
    """

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "http.client.send":
            block = arguments[1]
            sent(len(block) if isinstance(block, _BYTES) else 0)

    sys.addaudithook(watch)
