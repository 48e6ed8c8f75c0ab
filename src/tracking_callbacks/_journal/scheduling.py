"""How the kernel schedules a delivery process: the nice value and session weight that keep it behind the training."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["BACKGROUND", "IDLE", "lower_priority", "set_session_weight"]

_NICE = 10
# Nice values of a whole session. They matter where the kernel groups by session and ignores processes' nice values
# across groups (sched(7), "The autogroup feature"). Unlike a process's own nice value, a session's can be lowered again
# without privileges.
BACKGROUND = 10
IDLE = 19


def lower_priority(pid: int) -> None:
    """Put a newly started child, which has its own session, behind everything else.

    The parent does this right after the start, because a Python child would first run for a tenth of a second at the
    priority of the training before it could do so itself.
    """
    with contextlib.suppress(OSError, AttributeError):  # Windows has no setpriority
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
    set_session_weight(pid, IDLE)


def set_session_weight(pid: int, nice: int) -> bool:
    """Set the nice value of the whole session of `pid`, and return whether the kernel accepted it."""
    try:
        # The kernel refuses a second change within a tenth of a second.
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True
