"""Looks after the delivery of open runs once a second, in a thread, so that no call that logs has to."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["Attended", "look_after"]

_LOOK_SECONDS = 1.0


class Attended(Protocol):
    """A run's journal."""

    def attend(self) -> bool:
        """Look after delivery; return False once there is nothing left to look after."""
        ...


_attended: weakref.WeakSet[Attended] = weakref.WeakSet()
_lock = threading.Lock()
_thread: tuple[int, threading.Thread] | None = None  # with the process that it runs in, because a fork loses it


def look_after(journal: Attended) -> None:
    """Call `journal.attend` once a second until it returns False."""
    global _thread  # noqa: PLW0603 - one thread per process
    with _lock:
        if _thread is None or _thread[0] != os.getpid():
            _attended.clear()  # a forked child's are its parent's
            _thread = os.getpid(), threading.Thread(target=_look, name="tracking_callbacks lookout", daemon=True)
            _thread[1].start()
        _attended.add(journal)


@never_in_the_way(default=True)  # one failure must not leave every run without this
def _attend(journal: Attended) -> bool:
    return journal.attend()


def _look() -> None:
    pause = threading.Event()
    while not pause.wait(_LOOK_SECONDS):
        with _lock:
            journals = list(_attended)
        done = [journal for journal in journals if not _attend(journal)]
        with _lock:
            _attended.difference_update(done)
        del journals, done  # a journal that the user has dropped must not live on here


def _forget_lock() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()  # the parent's thread may have held it


os.register_at_fork(after_in_child=_forget_lock)
