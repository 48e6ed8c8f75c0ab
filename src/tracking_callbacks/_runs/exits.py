"""What happens to runs when the interpreter exits: open ones end with their true status, pending ones are drained."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol

from tracking_callbacks._writing.flushing import drain_at_exit
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks._writing.session import RunJournal

__all__ = ["ExitingRun", "register", "uncaught_error"]


class ExitingRun(Protocol):
    """What a run must have to be looked after at exit."""

    ended: bool
    journal: RunJournal

    def close(self) -> None:
        """End the run if it is open, with the status that is true."""

    def report(self) -> DeliveryReport:
        """Return what delivery has done so far."""
        ...


_runs: list[ExitingRun] = []
_registered_pids: set[int] = set()


def uncaught_error() -> BaseException | None:
    """Return the exception that ends this program, None if none does.

    The interpreter sets ``sys.last_exc`` before it calls ``sys.excepthook``, so no hook of the user's is replaced. A
    child of `multiprocessing` exits while it handles the exception. In a notebook or an interactive session, the last
    exception is that of some statement: the program goes on, and the exception says nothing about a run.
    """
    if (handled := sys.exception()) is not None and _in_multiprocessing_child():
        return handled
    if hasattr(sys, "ps1"):  # interactive; IPython sets it too
        return None
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def register(run: ExitingRun) -> None:
    """Close and drain `run` at exit, if it still needs it then."""
    pid = os.getpid()
    if pid not in _registered_pids:
        _registered_pids.add(pid)
        _runs.clear()  # a forked child's list is its parent's
        atexit.register(_at_exit, pid)
        if _in_multiprocessing_child():  # it runs its own exit functions only
            import multiprocessing.util

            multiprocessing.util.Finalize(None, _at_exit, args=(pid,), exitpriority=0)
    if run not in _runs:
        _runs[:] = [known for known in _runs if not (known.ended and known.report().complete)]
        _runs.append(run)


def _at_exit(pid: int) -> None:
    if os.getpid() != pid:  # a forked child runs its parent's exit functions too
        return
    for run in reversed(_runs):  # children before their parents
        run.close()
    drain_at_exit([run.journal for run in _runs])


def _in_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None
