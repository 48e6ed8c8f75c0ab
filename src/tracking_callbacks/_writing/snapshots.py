"""Snapshots files at the moment they are logged, because users overwrite or delete them before delivery reads them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path

__all__ = ["size_of", "snapshot"]

_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the blocks of a file (btrfs, xfs), copy on write


def snapshot(source: Path, target: Path) -> None:
    """Make `target` a snapshot of the file or folder `source`, and create its parent folder.

    Raises:
        OSError: The source cannot be read, or the target cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        _snapshot_file(source, target)
        return
    for folder, _, names in os.walk(source):
        inner = target / Path(folder).relative_to(source)
        inner.mkdir(parents=True, exist_ok=True)
        for name in names:
            _snapshot_file(Path(folder) / name, inner / name)


def size_of(source: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes; a file that is already gone counts as 0."""
    paths = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    size = 0
    for path in paths if source.is_dir() else (source,):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _snapshot_file(source: Path, target: Path) -> None:
    # Never a hard link: torch.save, shutil.copyfile and safetensors before 0.8 write into the file that is there.
    if not _reflink(source, target):
        shutil.copyfile(source, target)


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with open(source, "rb") as original, open(target, "wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return False
    return True
