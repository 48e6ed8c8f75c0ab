"""How far the delivery process stays behind the training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tracking_callbacks._journal.scheduling import BACKGROUND, IDLE, set_session_weight

__all__ = ["Priority"]

_AUTOGROUP_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")


class Priority:
    """The priority of this process, lowest while somebody trains; whoever has started it has lowered it before.

    Of two busy torch threads each waits for the other, so that what is taken from one is taken from both. Six seconds
    of training, beside which delivery imports MLflow, took 1.3 to 1.6 times as long at the priority of the trainer,
    and with a nice value of 10 for the session; about 1.15 times with 19, and 1.07 times with an idle import.
    """

    def __init__(self) -> None:
        self._grouped = _is_grouped()
        self._set: int | None = None
        self.step_aside(training=True)

    def step_aside(self, *, training: bool) -> None:
        """Leave the cores to a training, or deliver what it has left behind."""
        nice = IDLE if training else BACKGROUND
        if self._grouped and nice != self._set and set_session_weight(os.getpid(), nice):
            self._set = nice

    def run_idle(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread that the threads of other processes interrupt at once.

        Otherwise a thread runs on until its slice of some milliseconds has ended, whatever its weight, and a training
        thread that has just been woken waits for it. Only within a group of our own, which keeps its share of a
        machine that is busy for good: by itself such a thread would get a three-hundredth of a core there.
        """
        if not self._grouped:
            work()
            return

        def idle() -> None:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread alone, and for good
            work()

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="idle") as thread:
            thread.submit(idle).result()


def _is_grouped() -> bool:
    """Return whether the kernel schedules this session as a group of its own: it does only in the root cgroup."""
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
