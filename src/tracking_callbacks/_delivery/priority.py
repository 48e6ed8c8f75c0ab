"""The scheduling priority of the delivery process, which must not slow the training down."""

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
    """The priority of this process: lowest while a trainer runs. The trainer has already lowered it at the start.

    Busy torch threads wait for each other, so CPU time taken from one is taken from all. Six seconds of training, with
    delivery importing MLflow meanwhile, took 1.3 to 1.6 times as long at the trainer's priority, and also with a nice
    value of 10 for the session; about 1.15 times with 19, and 1.07 times with an idle import.
    """

    def __init__(self) -> None:
        self._grouped = _is_grouped()
        self._set: int | None = None
        self.step_aside(training=True)

    def step_aside(self, *, training: bool) -> None:
        """Use the lowest priority if a trainer runs, and background priority otherwise."""
        nice = IDLE if training else BACKGROUND
        if self._grouped and nice != self._set and set_session_weight(os.getpid(), nice):
            self._set = nice

    def run_idle(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread that threads of other processes preempt immediately.

        An ordinary thread, whatever its weight, keeps the core until its time slice of a few milliseconds ends, and a
        training thread that has just woken up waits for it. This is done only if this session is a scheduling group,
        which keeps its share even of a permanently busy machine; outside one, an idle thread would get a
        three-hundredth of a core there.
        """
        if not self._grouped:
            work()
            return

        def idle() -> None:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # for this thread only, permanently
            work()

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="idle") as thread:
            thread.submit(idle).result()


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
