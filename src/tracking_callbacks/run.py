"""A run as its user sees it: the verbs, and its life from start to end."""

from __future__ import annotations

import traceback
from contextvars import ContextVar
from types import TracebackType

from tracking_callbacks import exits, records
from tracking_callbacks.context.recorder import ContextRecorder
from tracking_callbacks.errors import InputError
from tracking_callbacks.flushing import wait_for_delivery
from tracking_callbacks.folders import JournalRoot
from tracking_callbacks.launch import DeliveryLauncher
from tracking_callbacks.masking import mask_text
from tracking_callbacks.report import DeliveryReport
from tracking_callbacks.session import RunJournal
from tracking_callbacks.settings import Settings
from tracking_callbacks.verbs import RunVerbs

__all__ = ["Run", "entered_runs"]

_STATUSES = ("FINISHED", "FAILED", "KILLED")
_RUN_ID_SECONDS = 5.0

entered_runs: ContextVar[tuple[Run, ...]] = ContextVar("tracking_callbacks_entered_runs", default=())


class Run(RunVerbs):
    """A run to log to; made by `MLflowTracker.start_run`, usable as a context manager.

    Every verb appends to the journal and returns within microseconds; what it accepted survives the death of this
    process. No verb raises for a tracking fault; wrong input raises an `InputError` that names it.

    Attributes:
        run_key: The run's identity on this side, known before the server has given it a run id.
        joined: Somebody else started the run and will end it.
        ended: `end` was called; more can still be logged, the status stays.
        status_at_exit: The run's status if it is still open when the interpreter exits without an exception.
    """

    def __init__(
        self,
        settings: Settings,
        root: JournalRoot,
        launcher: DeliveryLauncher | None,
        *,
        opened: records.SessionOpened,
    ) -> None:
        journal = RunJournal(settings, root, launcher, opened, on_open=lambda: exits.remember(self))
        super().__init__(settings, journal)
        self.run_key = opened.run_key
        self.joined = opened.intent == "join"
        self.ended = False
        self.status_at_exit: records.Status = "KILLED"
        self._error_before = exits.last_uncaught()
        self._context = ContextRecorder(settings, self.journal, opened)

    def end(self, status: records.Status = "FINISHED") -> None:
        """End the run; a second call does nothing. Delivery goes on in the background, `flush` waits for it.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``. A run that was only joined keeps its own status.

        Raises:
            InputError: `status` is another word.
        """
        if status not in _STATUSES:
            raise InputError(f"status: expected one of {', '.join(_STATUSES)}, got {status!r}")
        with self._lock:
            if not self.ended:
                self._context.end()
                self.ended = True
                self.journal.seal(None if self.joined else status)

    def fail(self, error: BaseException, status: records.Status = "FAILED") -> None:
        """End the run because of `error`: its traceback becomes ``error.txt``, its last line a tag."""
        if not self.ended and not self.joined:
            lines = traceback.format_exception(error)
            self.log_text(mask_text("".join(lines)), "error.txt")
            self.set_tags({"tracking_callbacks.error": mask_text(lines[-1].strip())})
        self.end(status)

    def reopen(self) -> None:
        """Continue the run after its end: its status is RUNNING again until the next `end`."""
        with self._lock:
            if self.ended:
                self.ended = False
                self._error_before = exits.last_uncaught()
                self.journal.reopen("join" if self.joined else "own")
                self._context.reopen()

    def end_interrupted(self, otherwise: records.Status = "KILLED") -> None:
        """End a run whose work has stopped without a word: with the uncaught exception if there is one.

        Args:
            otherwise: The status where no exception has reached the top of the program since the run began.
        """
        error = exits.last_uncaught()
        if error is None or error is self._error_before:
            self.end(otherwise)
        else:
            self.fail(error, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def close(self) -> None:
        """Let go of the journal at exit: an open run ends as interrupted, what was added to an ended one is sealed."""
        if self.ended:
            self.journal.seal(None)
        else:
            self.end_interrupted(otherwise=self.status_at_exit)

    def flush(self, timeout: float | None = None) -> DeliveryReport:
        """Wait until the store has everything logged so far, or `timeout` seconds have passed.

        Args:
            timeout: Seconds; None stands for the tracker's ``flush_timeout``. The wait shows its progress on stderr
                after two seconds. With ``offline=True`` nothing is waited for.
        """
        self._context.settle()
        if self.ended:
            self.journal.seal(None)  # what was added after the end
        if self.journal.offline:
            return self.report()
        return wait_for_delivery([self.journal], self.settings.flush_timeout if timeout is None else timeout)[0]

    def report(self) -> DeliveryReport:
        """Return what delivery has done so far, without waiting."""
        return self.journal.report()

    @property
    def run_id(self) -> str | None:
        """The server's id of the run; waits a few seconds for it, None when offline or not yet known."""
        return self.journal.wait_for_run_id(_RUN_ID_SECONDS)

    @property
    def parent_reference(self) -> dict[str, str | None]:
        """How a child run names this one."""
        return {"parent_key": None if self.joined else self.run_key, "parent_id": self.journal.known_run_id()}

    @property
    def url(self) -> str | None:
        """Link to the run in the MLflow UI, where the store is a server that has one."""
        uri = self.settings.shown_uri.rstrip("/")
        if not uri.startswith(("http://", "https://")) or self.run_id is None:
            return None
        return f"{uri}/#/experiments/{self.journal.state().experiment_id or 0}/runs/{self.run_id}"

    def __enter__(self) -> Run:
        entered_runs.set((*entered_runs.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered_runs.set(tuple(run for run in entered_runs.get() if run is not self))
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.end("FINISHED")
        elif _is_pruned(error):
            self.set_tags({"tracking_callbacks.pruned": "true"})
            self.end("KILLED")
        elif isinstance(error, Exception):
            self.fail(error)
        else:  # KeyboardInterrupt, sys.exit(3): stopped from outside
            self.fail(error, "KILLED")

    def __repr__(self) -> str:
        return f"<Run {self.run_key} at {self.settings.shown_uri}{', ended' if self.ended else ''}>"


def _is_pruned(error: BaseException) -> bool:
    """Return whether `error` is Optuna's ``TrialPruned``: the search has given a trial up, which is no failure."""
    return any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__)
