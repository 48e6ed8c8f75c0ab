"""The journal of a run whose tracking is switched off: it takes everything and keeps nothing."""

# ruff: noqa: ARG002 - the methods have the signatures of `RunJournal`

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tracking_callbacks._journal.layout import JournalRoot, RunState
from tracking_callbacks._journal.records import Intent, Record, SessionOpened, Status
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks._writing.session import RunJournal
from tracking_callbacks.settings import Settings

__all__ = ["SilentJournal"]


class SilentJournal(RunJournal):
    """Makes no file and starts no process, and never calls what would write a file."""

    def __init__(self, settings: Settings, opened: SessionOpened) -> None:
        self.flush_timeout = settings.delivery.flush_timeout
        self.root = JournalRoot(settings.journal_root)
        self._run_id = opened.run_id

    @property
    def offline(self) -> bool:
        """True: nothing is delivered."""
        return True

    @property
    def inert(self) -> bool:
        """True: nothing is written."""
        return True

    def append_metrics(self, step: int, points: dict[str, float]) -> None:
        """Keep nothing."""

    def append(self, record: Record) -> None:
        """Keep nothing."""

    def stage(self, name: str, write: Callable[[Path], object], record: Callable[[str], Record]) -> Path | None:
        """Write nothing."""
        return None

    def drop_in_fork(self, count: int) -> None:
        """Count nothing."""

    def seal(self, status: Status | None, *, at: int | None = None) -> None:
        """End nothing."""

    def reopen(self, intent: Intent, *, at_step: int | None = None) -> None:
        """Open nothing."""

    def report(self) -> DeliveryReport:
        """Return that nothing is left to deliver."""
        return DeliveryReport(delivered=0, pending=0, rejected=0, complete=True)

    def state(self) -> RunState:
        """Return the state of a run of which nothing is known."""
        return RunState(run_id=self._run_id)

    def ensure_delivery(self) -> None:
        """Start nothing."""
