"""Checkpoints that wait for delivery.

The training process drops the oldest ones to make room; delivery claims the one that it is sending.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from tracking_callbacks._journal.confined import delete, inside

__all__ = ["OverwrittenError", "WaitingCheckpoints", "claim", "secure"]


class WaitingCheckpoints:
    """The checkpoints that one process has logged to one run and that the store does not have yet.

    A store that is down, or slower than the training, must not fill the disk that the training itself needs.

    Args:
        max_bytes: Limit on their total size. None means half of the disk space that would be free without them.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._snapshots: list[tuple[Path, int]] = []  # with their sizes in bytes, oldest first

    def add(self, snapshot: Path, size: int) -> None:
        """Add a snapshot of `size` bytes; it must be alone in its folder."""
        with self._lock:
            self._snapshots.append((snapshot, size))

    def discard(self, snapshot: Path) -> bool:
        """Drop one snapshot; return False if delivery has claimed it or the store has it already."""
        with self._lock:
            known = [one for one in self._snapshots if one[0] == snapshot]
            self._snapshots = [one for one in self._snapshots if one[0] != snapshot]
        return bool(known) and _drop(snapshot)

    def make_room(self, size: int, folder: Path) -> int:
        """Drop the oldest checkpoints until one of `size` bytes fits, and return how many were dropped.

        It may still not fit once all are dropped. A checkpoint that delivery has claimed is being sent and stays. One
        that shares its blocks counts in full, because it takes up room as soon as the trainer deletes its own copy.

        Args:
            size: Bytes of the checkpoint that is staged next.
            folder: Where it will be staged: a folder on the same disk.
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
    """Move a snapshot out of the training process's reach and return its new path.

    The new path does not exist if the training process has dropped the snapshot.
    """
    claimed = _claimed(snapshot)
    with contextlib.suppress(FileNotFoundError):  # claimed by an earlier attempt, or dropped
        os.replace(snapshot.parent, claimed.parent)
    return claimed


class OverwrittenError(Exception):
    """The content of a snapshot has changed since it was logged."""


def secure(snapshot: Path, held: Mapping[str, tuple[int, int]]) -> None:
    """Make the hard links of a claimed snapshot independent of the files that training may write into.

    Args:
        snapshot: The snapshot, alone in its folder.
        held: As `_writing.snapshots.hold` returned it.

    Raises:
        OverwrittenError: A file has been written into.
        OSError: There is no room for a copy.
    """
    for name, known in held.items():
        path = inside(snapshot.parent, name)
        copy = path.with_name(f".{path.name}.copy")
        delete(copy, within=snapshot.parent)  # left over from a copy that was cut off, or a planted link
        _check_unchanged(path, known)
        if path.lstat().st_nlink > 1:  # otherwise training has deleted its own name of the file
            shutil.copyfile(path, copy, follow_symlinks=False)
            _check_unchanged(path, known)
            os.utime(copy, ns=(known[1], known[1]))
            os.replace(copy, path)


def _check_unchanged(path: Path, known: tuple[int, int]) -> None:
    found = path.lstat()
    if (found.st_size, found.st_mtime_ns) != tuple(known):
        raise OverwrittenError(f"{path.name} was overwritten after it was logged and before it was sent")


def _claimed(snapshot: Path) -> Path:
    return snapshot.parent.with_name(f"{snapshot.parent.name}.sending") / snapshot.name


def _waits(snapshot: Path) -> bool:
    return snapshot.exists() or _claimed(snapshot).exists()  # in this order, because it may be claimed in between


def _free(folder: Path) -> int:
    with contextlib.suppress(OSError):  # the folder is gone; staging will say so
        return shutil.disk_usage(folder).free
    return 0


def _drop(snapshot: Path) -> bool:
    """Remove a snapshot unless delivery has claimed it.

    It is renamed first, because delivery must never send part of it.
    """
    bin_ = snapshot.parent.with_name(f".{snapshot.parent.name}")
    try:
        os.replace(snapshot.parent, bin_)
    except OSError:  # claimed or already delivered; a snapshot that cannot be moved stays
        return False
    delete(bin_, within=bin_.parent)
    return True
