"""A run of a program that speaks MLflow: what it logs goes to the journal as it was given."""

from __future__ import annotations

import sys

from tracking_callbacks._journal import records
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._runs import exits
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.launch import DeliveryLauncher
from tracking_callbacks.settings import Settings

__all__ = ["ProgramRun"]

_AWAY_SECONDS = 5.0  # that the program's exit waits for a store that does not answer


class ProgramRun(Run):
    """A run that MLflow's client has created, or that it writes to.

    Attributes:
        params: The params that the run is known to have; None if it may have others.
        opened: How its first session here was opened.
        given_id: The run id that the program knows.
        delivered: The store is known to have everything, and the run has ended.
    """

    def __init__(
        self,
        settings: Settings,
        root: JournalRoot,
        launcher: DeliveryLauncher | None,
        *,
        opened: records.SessionOpened,
    ) -> None:
        self.params: dict[str, str] | None = None if opened.resumed else {}
        self.opened = opened
        self.given_id = opened.run_id or opened.run_key
        self.delivered = False
        self._closed = False
        super().__init__(settings, root, launcher, opened=opened)

    def set_status(self, status: str, at: int | None) -> None:
        """Do what MLflow's ``update_run_info`` does: end the run at a time, or make it RUNNING.

        Args:
            status: A status of MLflow's.
            at: When it ended, in milliseconds since the epoch.
        """
        final: dict[str, records.Status] = {"FINISHED": "FINISHED", "FAILED": "FAILED", "KILLED": "KILLED"}
        with self._lock:
            if status in final and self._closed and self.ended:
                return  # MLflow's exit function ends what ours has just ended with the true status
            self.delivered = False
            if self.joined or self.ended:  # from now on, this process decides the status
                self.joined, self.ended = False, True
                self.reopen()
            if status in final:
                error = sys.exception()
                if status == "FAILED" and error is not None:
                    self.log_error(error)
                self.ended = True
                self.journal.seal(final[status], at=at)
        if status in final:
            self.outlast_supervisor()

    def close(self) -> None:
        """Let go of the journal at exit.

        An open run ends as MLflow ends it: what ``mlflow.start_run`` has left active is FINISHED, and what a client has
        created stays RUNNING. After an uncaught exception both are FAILED.
        """
        self._closed = True
        error = None if self.ended or self.joined else exits.uncaught_error(self._modules)
        if error is not None:
            self.fail(error)
        elif not self.ended and not self.joined and self._is_active():
            self.end("FINISHED")
        else:
            self.journal.seal(None)
        if self.journal.state().last_error:  # the store does not answer, so it is not waited for as long as usual
            self.journal.waited = max(self.journal.waited, self.journal.flush_timeout - _AWAY_SECONDS)

    def _is_active(self) -> bool:
        fluent = sys.modules.get("mlflow.tracking.fluent")
        stacks = getattr(fluent, "_active_run_stack", None)  # undocumented (MLflow 3.17.2)
        active = [] if stacks is None else [run for stack in stacks.get_all_thread_values().values() for run in stack]
        return any(run.info.run_id in (self.given_id, self.run_key) for run in active)
