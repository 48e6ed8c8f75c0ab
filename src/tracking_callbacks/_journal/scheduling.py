"""How far delivery stays behind the training: what the kernel is told of a process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["BACKGROUND", "IDLE", "lower_priority", "set_session_weight"]

_NICE = 10
# The weight of a whole session, where the kernel groups by session and ignores nice values across groups
# (sched(7), "The autogroup feature"). It can be raised again without any right, unlike a process's own.
BACKGROUND = 10
IDLE = 19


def lower_priority(pid: int) -> None:
    """Put a child that has just been started, in a session of its own, behind everything else.

    At once and from here: until a Python process comes to doing so itself it has worked for a tenth of a second, at
    the priority of the training.
    """
    with contextlib.suppress(OSError, AttributeError):  # which Windows has not
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
    set_session_weight(pid, IDLE)


def set_session_weight(pid: int, nice: int) -> bool:
    """Give the session of `pid` a weight, and return whether the kernel has taken it."""
    try:
        # Refused when it comes twice within a tenth of a second.
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True
