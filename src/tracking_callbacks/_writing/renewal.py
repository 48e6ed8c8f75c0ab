"""Hands credentials that change while a training process runs on to its delivery process.

They pass through a socket that is the delivery process's stdin: no file and no command line holds them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tracking_callbacks._journal.handover import Renewal

__all__ = ["hand_on_credentials"]

_LOOK_SECONDS = 10.0

Environment = dict[str, str]


def hand_on_credentials(connection: socket.socket, current: Callable[[], Environment], known: Environment) -> None:
    """Send what changes in the environment from now on, and what the other process asks for, until that ends.

    Args:
        connection: Leads to the delivery process.
        current: Returns the variables that the store's credentials come from, with their present values.
        known: Those that the delivery process was started with.
    """
    thread = threading.Thread(
        target=_hand_on, args=(connection, current, known), name="tracking_callbacks credentials", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # the interpreter exits, which starts no threads from Python 3.12 on: nothing changes any more
        connection.close()


def _hand_on(connection: socket.socket, current: Callable[[], Environment], known: Environment) -> None:
    connection.settimeout(_LOOK_SECONDS)
    with connection, contextlib.suppress(OSError):
        while True:
            try:
                if not connection.recv(64):
                    return  # the delivery process has ended
            except TimeoutError:  # it has not asked
                pass
            now = current()
            if renewal := Renewal.between(known, now):
                connection.sendall(renewal.encode())
                known = now
