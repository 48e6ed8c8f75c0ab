"""The scheduling priority of the delivery process: behind the training, but only for as long as nothing waits."""

from __future__ import annotations

import os
from pathlib import Path

from tracking_callbacks._journal.scheduling import BACKGROUND, set_session_weight

__all__ = ["Priority"]

_AUTOGROUP_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
# The session's nice value by the seconds for which the oldest undelivered record has waited.
_BY_AGE = ((1.0, BACKGROUND), (3.0, 5))
_ORDINARY = 0


class Priority:
    """The priority of this process's session, where the kernel groups by session.

    Busy torch threads wait for each other, so CPU time taken from one is taken from all; delivery therefore stays
    behind the training. The longer a record waits, the higher the priority. A session that stayed at nice 19 delivered
    its first point after a minute next to two busy loops, and not within five minutes next to six.
    """

    def __init__(self) -> None:
        self._grouped = _is_grouped()
        self._set = _ORDINARY

    def adapt(self, *, waiting: float, training: bool) -> None:
        """Choose the priority.

        Args:
            waiting: Seconds for which the oldest undelivered record has waited; 0 if there is none.
            training: Whether a process still writes to a run.
        """
        nice = next((nice for limit, nice in _BY_AGE if training and waiting < limit), _ORDINARY)
        if self._grouped and nice != self._set and set_session_weight(os.getpid(), nice):
            self._set = nice


def _is_grouped() -> bool:
    """Return whether the kernel schedules this session as a separate group, which it does only in the root cgroup."""
    try:
        if _AUTOGROUP_ENABLED.read_text().strip() != "1":
            return False
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux, or a kernel without the feature
        return False
    for _, controllers, place in (line.split(":", 2) for line in lines):
        if "cpu" in controllers.split(","):
            return place == "/"
    return not any(Path(f"/sys/fs/cgroup{line[3:]}", "cpu.weight").exists() for line in lines if line.startswith("0::"))
