"""Which process owns a journal, and whether it is still alive.

A process of this machine is watched itself. One of another machine, boot or container cannot be seen, but it holds a
lock on its journal, which network file systems and bind mounts show everywhere; a copy of the journal has none.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import sys
from pathlib import Path

import msgspec

from tracking_callbacks._journal.confined import open_own

__all__ = [
    "Owner",
    "OwnerWatch",
    "WriterWatch",
    "current_owner",
    "is_locked",
    "lock_journal",
    "started_at",
    "watch_over",
]

_LINUX = sys.platform == "linux"


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """The identity of a process, which no later process can share by chance.

    Attributes:
        boot_id: The running kernel's boot id: a pid means nothing after a reboot or on another machine.
        pid_namespace: Inode of the pid namespace: two containers on one machine use the same pids.
        pid: Process id within that namespace.
        start_ticks: Start time in clock ticks since boot. It tells a reused pid apart and, unlike a wall-clock
            creation time, does not move when the clock is set.
        host: Host name, for display only.
    """

    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int
    host: str = ""

    def is_local(self) -> bool:
        """Return whether the process shares our boot and pid namespace, so that we can tell whether it is alive."""
        here = current_owner()
        return (self.boot_id, self.pid_namespace) == (here.boot_id, here.pid_namespace)


def current_owner() -> Owner:
    """Return the identity of the calling process, also right after a fork."""
    return _owner_of(os.getpid())


@functools.lru_cache(maxsize=2)
def _owner_of(pid: int) -> Owner:
    return Owner(_boot_id(), _pid_namespace(), pid, started_at(pid) or 0, os.uname().nodename)


@functools.cache
def _boot_id() -> str:
    if _LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    import psutil

    return f"{os.uname().nodename}-{int(psutil.boot_time())}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino if _LINUX else 0


def started_at(pid: int) -> int | None:
    """Return when `pid` started, in clock ticks since boot, or None if there is no such process."""
    if _LINUX:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return int(stat.rpartition(b")")[2].split()[19])  # field 22 of proc(5); the name before it may hold spaces
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.NoSuchProcess:
        return None


class OwnerWatch:
    """Watches whether a process is alive, without being its parent.

    On Linux it holds a pidfd, which becomes readable as soon as the process ends. A zombie therefore counts as dead,
    and the pid cannot be reused while it is watched.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._pidfd: int | None = None
        self._dead = started_at(owner.pid) != owner.start_ticks
        if not self._dead and hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(owner.pid)
            except ProcessLookupError:
                self._dead = True
            else:
                self._dead = started_at(owner.pid) != owner.start_ticks  # it may have been reused in between

    def alive(self) -> bool:
        """Return whether the process still runs; once False, always False."""
        if not self._dead:
            if self._pidfd is not None:
                poll = select.poll()
                poll.register(self._pidfd, select.POLLIN)
                self._dead = bool(poll.poll(0))
            else:
                self._dead = not self._alive_by_psutil()
            if self._dead:
                self.close()
        return not self._dead

    def _alive_by_psutil(self) -> bool:
        import psutil

        try:
            zombie = psutil.Process(self.owner.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        return not zombie and started_at(self.owner.pid) == self.owner.start_ticks

    def close(self) -> None:
        """Close the pidfd."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def lock_journal(fd: int) -> None:
    """Show the processes of other machines that a journal has a writer, until that ends or closes the journal.

    Args:
        fd: The journal, open for writing. Where the file system has no locks, nothing happens.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock on one of our files; False where the file system has no locks."""
    with contextlib.suppress(OSError):
        fd = open_own(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


class WriterWatch:
    """Watches whether a process that cannot be seen from here still holds its journal."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def alive(self) -> bool:
        """Return whether the journal is locked."""
        return is_locked(self._journal)

    def close(self) -> None:
        """Do nothing, because nothing is kept open."""


def watch_over(owner: Owner, journal: Path) -> OwnerWatch | WriterWatch:
    """Return what tells whether a process still writes to its journal, wherever it runs."""
    return OwnerWatch(owner) if owner.is_local() else WriterWatch(journal)
