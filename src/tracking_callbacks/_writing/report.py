"""The report that tells the user what delivery has done with a run's records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DeliveryReport"]


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """Counts of a run's entries: metric points, params, tags, artifacts, datasets and models.

    Attributes:
        delivered: Entries that the store has acknowledged.
        pending: Entries in the journal that the store has not acknowledged yet.
        rejected: Entries that the store refused permanently; ``rejected.jsonl`` gives the reason for each.
        dropped: Entries that could not be written to the journal (disk full, unwritable folder), and checkpoints that
            made room for later ones (`max_checkpoint_bytes`), and what forked processes logged to this process's run.
        damaged: Stretches of the journal that could not be read back.
        complete: Nothing is pending, and the run's end, if it has ended, is in the store.
        last_error: What currently stops delivery; empty when nothing does.
        rejected_files: Folder that keeps the files among the rejected entries. None means that there are none.
    """

    delivered: int
    pending: int
    rejected: int
    dropped: int = 0
    damaged: int = 0
    complete: bool = False
    last_error: str = ""
    rejected_files: Path | None = None
