"""How the kernel schedules a delivery process: the nice value and session weight that keep it behind the training."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["BACKGROUND", "lower_priority", "set_session_weight"]

# Of the process itself, which counts where sessions are not grouped, as in a container. It cannot be raised again.
_NICE = 5
# Nice values of a whole session. They matter where the kernel groups by session and ignores processes' nice values
# across groups (sched(7), "The autogroup feature"). Unlike a process's own nice value, a session's can be lowered again
# without privileges.
BACKGROUND = 10


def lower_priority(pid: int) -> None:
    """Put a newly started child behind the training, where processes are not grouped by session.

    The weight of its session stays as it is until the child has started (`Priority`): a start takes a quarter of a
    second of a core, which stretched to ten seconds when it was behind six busy processes.
    """
    with contextlib.suppress(OSError, AttributeError):  # Windows has no setpriority
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


def set_session_weight(pid: int, nice: int) -> bool:
    """Set the nice value of the whole session of `pid`, and return whether the kernel accepted it."""
    try:
        # The kernel refuses a second change within a tenth of a second.
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True
