"""Keeps what is read and deleted inside one folder.

A journal may come from another machine or another user, or a bad disk may have changed it. So a path that was read
from one is resolved here before it is used, and no other module of the package deletes anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

__all__ = ["OutsideError", "check_tree", "delete", "inside", "is_key", "open_own", "read_own"]

_MAX_STATE_BYTES = 64 * 1024 * 1024
_RESERVED = ("delivered", "rejected")  # folders of the journal root that are no runs
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


class OutsideError(ValueError):
    """A path that a journal or state file names does not lie inside the folder it must lie in."""


def is_key(text: str) -> bool:
    """Return whether `text`, the key of a run or record, can be a folder's name and part of a search."""
    return _KEY.fullmatch(text) is not None and text not in _RESERVED


def inside(folder: Path, name: str) -> Path:
    """Return the path that `name`, relative to `folder`, leads to; it need not exist.

    Raises:
        OutsideError: It is absolute, holds ``..``, passes through a symbolic link, or cannot be a path.
    """
    parts = name.split("/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or any(part in ("", ".", "..") for part in parts):
        raise OutsideError(f"the path {name!r} leads out of the run's folder")
    path = folder
    for part in parts:
        path = path / part
        try:
            linked = stat.S_ISLNK(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # too long, a NUL character
            raise OutsideError(f"{name[:200]!r} is not a path: {error}") from error
        if linked:
            raise OutsideError(f"the path {name!r} passes through a symbolic link")
    return path


def check_tree(path: Path) -> None:
    """Check that `path`, which `inside` has returned, is a file, or a folder of nothing but files and folders.

    Snapshots never hold symbolic links, because a link's target would be uploaded in its place.

    Raises:
        OutsideError: It is or holds a symbolic link, a pipe or another special file.
    """
    found = [path] if os.path.lexists(path) else []
    for folder, folders, files in os.walk(path):
        found += [Path(folder, name) for name in (*folders, *files)]
    for one in found:
        mode = one.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
            raise OutsideError(f"the snapshot holds {kind}: {one.relative_to(path.parent)}")


def delete(path: Path, within: Path) -> None:
    """Delete the file, link or folder at `path`; links are removed, never followed.

    What is gone already, or cannot be deleted, is left alone.

    Args:
        path: What to delete; it must lie below `within`.
        within: The folder that nothing is deleted outside of.

    Raises:
        OutsideError: `path` does not lie below `within`.
    """
    holder, border = (Path(os.path.realpath(one)) for one in (path.parent, within))
    if path.name in ("", "..") or not holder.is_relative_to(border):
        raise OutsideError(f"{path} is not deleted, because it does not lie below {within}")
    target = holder / path.name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        target.unlink()


def open_own(path: Path, flags: int) -> int:
    """Open a file that only this package writes, and return its descriptor; a link or special file is refused.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    return fd


def read_own(path: Path, limit: int = _MAX_STATE_BYTES) -> bytes:
    """Return the first `limit` bytes of a file that only this package writes.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as content:
        return content.read(limit)
