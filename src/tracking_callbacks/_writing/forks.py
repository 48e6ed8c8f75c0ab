"""A count that a process shares with the processes that it forks."""

from __future__ import annotations

import mmap
import os
import struct

__all__ = ["ForkedCount"]

_SLOT = struct.Struct("=Q")
_SLOTS = mmap.PAGESIZE // _SLOT.size


class ForkedCount:
    """Counts what forked children report, in memory that they share with their parent.

    Each process adds to a slot of its own, because an addition is not atomic.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def add(self, count: int) -> None:
        """Add `count` for the calling process."""
        at = os.getpid() % _SLOTS * _SLOT.size
        _SLOT.pack_into(self._page, at, _SLOT.unpack_from(self._page, at)[0] + count)

    def total(self) -> int:
        """Return what all processes have added."""
        return sum(count for (count,) in _SLOT.iter_unpack(self._page[:]))
