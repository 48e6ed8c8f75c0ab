"""Snapshots files at the moment they are logged, because users overwrite or delete them before delivery reads them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tracking_callbacks._journal.confined import delete

__all__ = ["hold", "size_of", "snapshot"]

_COPIED_BYTES = 256 * 1024  # smaller files are copied even where they could be linked
_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the blocks of a file (btrfs, xfs), copy on write


def snapshot(source: Path, target: Path) -> None:
    """Make `target` a snapshot of the file or folder `source`, and create its parent folder.

    Raises:
        OSError: The source cannot be read, or the target cannot be written.
    """
    _each_file(source, target, _snapshot_file)


def _each_file(source: Path, target: Path, take: Callable[[Path, Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        take(source, target)
        return
    for folder, _, names in os.walk(source):
        inner = target / Path(folder).relative_to(source)
        inner.mkdir(parents=True, exist_ok=True)
        for name in names:
            take(Path(folder) / name, inner / name)


def hold(source: Path, target: Path) -> dict[str, tuple[int, int]]:
    """Make `target` a snapshot of `source` whose large files are hard links, which takes no time whatever their size.

    Deleting or replacing the source leaves a link as it is. Writing into the source changes both, so delivery compares
    the links with what this returns before it sends them (`_journal.checkpoints.secure`).

    Returns:
        Size in bytes and time of the last change (ns since the epoch) of each linked file, by its path relative to
        `target`'s folder. Files that share blocks or had to be copied are left out.

    Raises:
        OSError: The source cannot be read, or the target cannot be written.
    """
    held: dict[str, tuple[int, int]] = {}

    def take(original: Path, copy: Path) -> None:
        if original.stat().st_size < _COPIED_BYTES:
            _snapshot_file(original, copy)
        elif _reflink(original, copy):
            return
        elif _link(original, copy):
            found = copy.stat()
            held[copy.relative_to(target.parent).as_posix()] = (found.st_size, found.st_mtime_ns)
        else:
            shutil.copyfile(original, copy)

    _each_file(source, target, take)
    return held


def size_of(source: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes; a file that is already gone counts as 0."""
    paths = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    size = 0
    for path in paths if source.is_dir() else (source,):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _snapshot_file(source: Path, target: Path) -> None:
    # Not a hard link: torch.save, shutil.copyfile and safetensors before 0.8 write into the file that is there.
    if not _reflink(source, target):
        shutil.copyfile(source, target)


def _link(source: Path, target: Path) -> bool:
    delete(target, within=target.parent)  # an attempt to share blocks has created it
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:  # another file system, or one without hard links
        return False
    return True


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
