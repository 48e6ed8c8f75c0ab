"""Takes over credentials that have changed in the training process, see `_writing.renewal`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable

from tracking_callbacks._journal.handover import Renewal

__all__ = ["Renewals"]

logger = logging.getLogger(__name__)

_ASK_SECONDS = 1.0
_STDIN = 0


class Renewals:
    """Changes this process's environment as the training process's changes.

    Args:
        renewed: Called, from a thread, after a change.

    Attributes:
        arrived: Set after a change; the delivery loop acts on it and clears it.
    """

    def __init__(self, renewed: Callable[[], None]) -> None:
        self.arrived = threading.Event()
        self._renewed = renewed
        self._asked = 0.0
        self._connection: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(_STDIN).st_mode):
            self._connection = socket.socket(fileno=os.dup(_STDIN))
            threading.Thread(target=self._receive, name="renewals", daemon=True).start()

    def ask(self) -> None:
        """Ask the training process for credentials that have changed, because the store refuses those that we have."""
        now = time.monotonic()
        if self._connection is not None and now - self._asked > _ASK_SECONDS:
            self._asked = now
            with contextlib.suppress(OSError):  # the training process is gone
                self._connection.send(b"?", socket.MSG_DONTWAIT)

    def _receive(self) -> None:
        assert self._connection is not None
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:
            for line in lines:
                variables = Renewal.decode(line).variables
                for name, text in variables.items():
                    if text is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = text
                logger.info("renewed: %s", ", ".join(sorted(variables)))
                self._renewed()
                self.arrived.set()
