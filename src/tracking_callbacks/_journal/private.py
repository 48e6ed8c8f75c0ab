"""Whether a folder is ours alone: what others can write to is neither written nor delivered."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["check_private"]


def check_private(folder: Path) -> None:
    """Check that `folder` belongs to the present user, and that no other user can write to it.

    A folder's owner can swap any file below it while delivery reads it, so the root user is no exception.

    Raises:
        PermissionError: Another user owns it or can write to it.
    """
    if not hasattr(os, "getuid"):  # Windows has no such owners and modes
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise PermissionError(
            1,
            f"it belongs to user {found.st_uid}, not to user {os.getuid()}: work as its owner or with your own copy",
            str(folder),
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            1,
            f"other users can write to it (mode {stat.S_IMODE(found.st_mode):o}): "
            "check what it holds, then take that away with chmod go-w",
            str(folder),
        )
