"""What happens to runs when the interpreter exits: open ones end with their true status, pending ones are drained."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from types import CodeType, FrameType
from typing import Any, Protocol

from tracking_callbacks._writing.flushing import drain_at_exit
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks._writing.session import RunJournal

__all__ = ["ExitingRun", "is_printed", "is_pruned", "modules_on_stack", "register", "uncaught_error"]

_PRINTS = "_bootstrap", "multiprocessing.process"


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
_ends_child: list[BaseException] = []  # the exception that ends this child of `multiprocessing`


def modules_on_stack() -> frozenset[str]:
    """Return the files of the modules, and the names of the notebook cells, that this thread is executing."""
    frame: FrameType | None = sys._getframe(1)
    found = set()
    while frame is not None:
        if _is_module(frame.f_code):
            found.add(frame.f_code.co_filename)
        frame = frame.f_back
    return frozenset(found - {"<stdin>"})  # all statements of an interactive session have this name


def uncaught_error(modules: frozenset[str]) -> BaseException | None:
    """Return the exception that ends what began a run, None if there is none.

    The interpreter sets ``sys.last_exc`` before it calls ``sys.excepthook``, and IPython does the same for a cell, so
    no hook of the user's is replaced. A child of `multiprocessing` exits while it handles the exception, or, from
    Python 3.13 on, after it has printed that.

    Args:
        modules: What `modules_on_stack` returned when the run began. An exception that passed through none of them is
            that of another cell, and says nothing about the run.
    """
    if (handled := sys.exception()) is not None and _in_multiprocessing_child():
        return handled
    if _ends_child:
        return _ends_child[-1]
    error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        code = trace.tb_frame.f_code
        if _is_module(code) and code.co_filename in modules:
            return error
        trace = trace.tb_next
    return None


def is_printed(error: BaseException) -> bool:
    """Return whether the interpreter has printed this exception, or ends without a word because of it."""
    printed = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error is printed or isinstance(error, SystemExit) or any(error is one for one in _ends_child)


def _is_module(code: CodeType) -> bool:
    return code.co_name == "<module>" or code.co_name.startswith("<cell ")  # IPython's name for a part of a cell


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
            _note_what_ends_child()
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


def _note_what_ends_child() -> None:
    """Keep the exception that this child of `multiprocessing` prints at its end: nothing else names it at the exit.

    Undocumented (CPython 3.11 to 3.13): `BaseProcess._bootstrap` prints it by ``traceback.print_exc()``.
    """
    _ends_child.clear()  # a forked child's list is its parent's
    original = traceback.print_exc

    def print_exc(*args: Any, **kwargs: Any) -> None:
        caller, error = sys._getframe(1), sys.exception()
        if error is not None and (caller.f_code.co_name, caller.f_globals.get("__name__")) == _PRINTS:
            _ends_child.append(error)
        original(*args, **kwargs)

    traceback.print_exc = print_exc


def is_pruned(error: BaseException) -> bool:
    """Return whether `error` is Optuna's ``TrialPruned``: the search has given a trial up, which is no failure."""
    return any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__)
