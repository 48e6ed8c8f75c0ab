"""Room on the disk for the checkpoints of a run that wait for delivery."""

from __future__ import annotations

import logging
from pathlib import Path

from tracking_callbacks._journal import records
from tracking_callbacks._journal.checkpoints import WaitingCheckpoints
from tracking_callbacks._writing.session import RunJournal
from tracking_callbacks._writing.snapshots import hold, size_of, snapshot

__all__ = ["CheckpointRoom"]

logger = logging.getLogger(__name__)


class CheckpointRoom:
    """The checkpoints of one run: files of the trainer or whole models, of which the oldest go to make room.

    Args:
        journal: Where their records go.
        max_bytes: See `WaitingCheckpoints`.
    """

    def __init__(self, journal: RunJournal, max_bytes: int | None) -> None:
        self._journal = journal
        self._waiting = WaitingCheckpoints(max_bytes)
        self._sources: set[Path] = set()

    def log(self, source: Path) -> None:
        """Log the file or folder `source` as it is now, see `Run.log_checkpoint`."""
        if self._journal.inert:  # a forked child must not drop what its parent has logged
            self._journal.drop_in_fork(1)
            return
        size = size_of(source)
        self.make(size)
        held: dict[str, tuple[int, int]] = {}

        def write(target: Path) -> None:
            if source in self._sources:  # it is written over, so a link to it would change
                snapshot(source, target)
            else:
                held.update(hold(source, target))

        staged = self._journal.stage(
            source.name or source.resolve().name,
            write,
            lambda staged: records.Artifact(staged, "checkpoints", checkpoint=True, held=held),
        )
        self._sources.add(source)
        if staged is not None:
            self.add(staged, size)

    def make(self, size: int) -> None:
        """Drop the oldest checkpoints until one of `size` bytes fits."""
        if dropped := self._waiting.make_room(size, self._journal.root.path):
            self._journal.withdraw(dropped)
            logger.warning(
                "too many checkpoints wait for delivery (max_checkpoint_bytes): dropped the oldest %d", dropped
            )

    def add(self, staged: Path, size: int) -> None:
        """Count a checkpoint of `size` bytes that has been staged."""
        self._waiting.add(staged, size)

    def discard(self, staged: Path) -> None:
        """Drop one checkpoint, unless delivery has it already."""
        if self._waiting.discard(staged):
            self._journal.withdraw(1)
