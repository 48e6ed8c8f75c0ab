"""Checkpoints that wait for delivery: the training drops the oldest to make room, delivery claims the one it sends."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

__all__ = ["WaitingCheckpoints", "claim"]


class WaitingCheckpoints:
    """The checkpoints that one process has logged to one run and that the store does not have yet.

    A store that is away, or slower than the training, must not fill the disk that the training itself needs.

    Args:
        max_bytes: What they may take together; None: half of the room that the disk would have without them.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._snapshots: list[tuple[Path, int]] = []  # with their bytes, oldest first

    def add(self, snapshot: Path, size: int) -> None:
        """Take in a snapshot of `size` bytes, which lies in a folder of its own."""
        with self._lock:
            self._snapshots.append((snapshot, size))

    def make_room(self, size: int, folder: Path) -> int:
        """Drop the oldest ones until another of `size` bytes fits, if they are enough; return their number.

        What delivery has claimed is on its way and stays. What is linked counts in full: it takes the disk's room as
        soon as the training deletes its own.

        Args:
            size: Bytes of the checkpoint that is to be staged next.
            folder: Where that will be: a folder on the same disk.
        """
        with self._lock:
            self._snapshots = [one for one in self._snapshots if _waits(one[0])]
            waiting = sum(bytes_ for _, bytes_ in self._snapshots)
            limit = (_free(folder) + waiting) // 2 if self._max_bytes is None else self._max_bytes
            dropped = []
            for one in self._snapshots:
                if waiting + size <= limit:
                    break
                if _drop(one[0]):
                    waiting -= one[1]
                    dropped.append(one)
            self._snapshots = [one for one in self._snapshots if one not in dropped]
            return len(dropped)


def claim(snapshot: Path) -> Path:
    """Take a snapshot out of its training's reach; return where it is now, and nothing is if it has been dropped."""
    claimed = _claimed(snapshot)
    with contextlib.suppress(FileNotFoundError):  # by an earlier attempt; or dropped
        os.replace(snapshot.parent, claimed.parent)
    return claimed


def _claimed(snapshot: Path) -> Path:
    return snapshot.parent.with_name(f"{snapshot.parent.name}.sending") / snapshot.name


def _waits(snapshot: Path) -> bool:
    return snapshot.exists() or _claimed(snapshot).exists()  # in this order: it may be claimed in between


def _free(folder: Path) -> int:
    with contextlib.suppress(OSError):  # the folder is gone; staging will say so
        return shutil.disk_usage(folder).free
    return 0


def _drop(snapshot: Path) -> bool:
    """Remove a snapshot, unless delivery has claimed it; renamed first, for it must never be sent in part."""
    bin_ = snapshot.parent.with_name(f".{snapshot.parent.name}")
    try:
        os.replace(snapshot.parent, bin_)
    except OSError:  # claimed, or delivered by now; what cannot be moved stays
        return False
    shutil.rmtree(bin_, ignore_errors=True)
    return True
