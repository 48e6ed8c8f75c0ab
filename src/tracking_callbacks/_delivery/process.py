"""The life of a delivery process: which runs it delivers, how it stays out of the trainer's way, and when it ends."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from tracking_callbacks._delivery.drain import RunDrain
from tracking_callbacks._delivery.priority import Priority
from tracking_callbacks._delivery.progress import Progress
from tracking_callbacks._delivery.renewal import Renewals
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.system_metrics import SystemSampler
from tracking_callbacks._journal.confined import delete
from tracking_callbacks._journal.handover import (
    DELIVERY_VARIABLE,
    REGISTRY_URI_VARIABLE,
    TRACKING_URI_VARIABLE,
    Assignment,
)
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, is_held
from tracking_callbacks._journal.owner import Owner, OwnerWatch
from tracking_callbacks._journal.pending import read_opened
from tracking_callbacks._journal.records import SessionOpened
from tracking_callbacks._values.secrets import mask_text

__all__ = ["DeliveryProcess", "main"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SCAN_SECONDS = 0.5
_LINGER_SECONDS = 5.0  # to wait for the next run of a sweep, so that MLflow is not imported again for each
_KEEP_DELIVERED_SECONDS = 7 * 24 * 3600.0


def main(root: Path) -> int:
    """Deliver the runs under `root` that belong to the launching process or to dead processes; return 0."""
    # MLflow prints progress bars, and a run's URL when the run ends. On a full disk that must not fail the call.
    sys.stdout = sys.stderr = _Log()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s", stream=sys.stderr
    )
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Slurm and Kubernetes signal every process of a job; what the trainer still logs must be delivered.
        signal.signal(name, signal.SIG_IGN)
    assignment = Assignment.decode(os.environ.pop(DELIVERY_VARIABLE))
    store = MlflowStore(os.environ[TRACKING_URI_VARIABLE], os.environ.get(REGISTRY_URI_VARIABLE))
    DeliveryProcess(JournalRoot(root), store, assignment).deliver()
    return 0


class _Log(io.TextIOBase):
    """The process's log, to stderr with secrets masked; a write that fails is dropped silently."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, mask_text(text).encode(errors="replace"))
        return len(text)


class DeliveryProcess:
    """Delivers the runs of one owner to one store, and the runs that dead owners have left behind.

    Args:
        root: The journal root.
        store: The store to deliver to.
        assignment: Whose runs to deliver, and for how long. With a ``stall_timeout``, the process delivers every run
            that no other process delivers, up to what its journals hold; owners on other machines or in other
            containers count as dead. It ends once neither its own runs nor those that another process delivers have
            made progress for that long.
    """

    def __init__(self, root: JournalRoot, store: MlflowStore, assignment: Assignment) -> None:
        self._root = root
        self._store = store
        self._renewals = Renewals(store.renew)
        self._sampler = SystemSampler()
        self._priority = Priority()
        self._assignment = assignment
        self._owner_watch = OwnerWatch(assignment.owner)
        self._watches: dict[Owner, OwnerWatch | None] = {assignment.owner: self._owner_watch}
        self._headers: dict[Path, SessionOpened] = {}
        self._drains: dict[str, tuple[RunDrain, FileLock]] = {}
        self._drains_lock = threading.Lock()
        self._stopping = threading.Event()
        self._progress = Progress()
        self._elsewhere: dict[str, int] = {}
        self._takeovers: dict[str, FileLock] = {}
        self._caught_up: set[str] = set()
        self._died: float | None = None
        self._idle_since: float | None = None

    def deliver(self) -> None:
        """Deliver until nothing is left to do or the grace period has ended."""
        self._root.prune(time.time() - _KEEP_DELIVERED_SECONDS)
        self._progress.watch_sending()
        files = threading.Thread(target=self._files_lane, name="files", daemon=True)
        scanned: float | None = None
        while True:
            now = time.monotonic()
            if scanned is None or now - scanned >= _SCAN_SECONDS:
                scanned = now
                self._show_uploading()
                self._hand_over()
                self._take_on_runs()
            if self._drains and not files.is_alive():
                # Before there are two threads: if both import MLflow at the same time, it stays half imported.
                self._priority.run_idle(self._store.load)
                self._progress.finish_step()
                gc.freeze()
                gc.enable()
                files.start()
            self._renew_credentials()
            worked = [drain.step_points() for drain in self._current()]
            self._priority.step_aside(training=any(drain.has_writer() for drain in self._current()))
            self._finish_complete()
            if self._done(now):
                break
            if not any(worked):
                time.sleep(_POLL_SECONDS)
        self._stopping.set()
        for lock in (*(lock for _, lock in self._drains.values()), *self._takeovers.values()):
            lock.release()
        if not self._owner_watch.alive():
            self._root.remove_scratch()
        logger.info("delivery ends with %d runs left", len(self._drains))

    def _renew_credentials(self) -> None:
        if any(drain.state.blocked for drain in self._current()):
            self._renewals.ask()
        if self._renewals.arrived.is_set():
            self._renewals.arrived.clear()
            for drain in self._current():
                drain.try_now()

    def _done(self, now: float) -> bool:
        if self._drains or self._elsewhere:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        idle = 0.0 if self._idle_since is None else now - self._idle_since
        if self._assignment.stall_timeout is not None:
            # A `status` that looks at a lock holds it for a moment, so one look at the runs is not enough.
            return idle > 2 * _SCAN_SECONDS or now - self._progress.moved > self._assignment.stall_timeout
        if not self._owner_watch.alive():
            if self._died is None:
                self._died = now
                self._take_on_runs()  # runs that it began since the last scan, perhaps its only one
            return not self._drains or now - self._died > self._assignment.grace
        return idle > _LINGER_SECONDS

    def _files_lane(self) -> None:
        while not self._stopping.is_set():
            worked = [drain.step_files() for drain in self._current()]
            if not any(worked):
                self._stopping.wait(_POLL_SECONDS)

    def _current(self) -> list[RunDrain]:
        with self._drains_lock:
            return [drain for drain, _ in self._drains.values()]

    def _take_on_runs(self) -> None:
        for drain in self._current():
            drain.discover_sessions()
        elsewhere: dict[str, int] = {}
        for folder in self._root.runs():
            if folder.run_key in self._drains or not self._is_ours(folder):
                continue
            if not self._syncs and is_held(folder.takeover_lock):
                continue
            folder.remove_planted()
            lock = FileLock(folder.drain_lock, blocking=False)
            try:
                lock.acquire()
            except Timeout:
                if self._waits_for(folder):
                    elsewhere[folder.run_key] = folder.state_written()
                continue
            if not folder.journals():  # another process just delivered it, and taking the lock recreated the folder
                lock.release()
                delete(folder.path, within=self._root.path)
                continue
            drain = RunDrain(folder, self._root, self._store, self._watch_of, self._sampler, self._progress)
            with self._drains_lock:
                self._drains[folder.run_key] = (drain, lock)
        if elsewhere != self._elsewhere:
            self._elsewhere = elsewhere
            self._progress.finish_step()

    @property
    def _syncs(self) -> bool:
        """Whether this is an explicit ``sync``."""
        return self._assignment.stall_timeout is not None

    def _waits_for(self, folder: RunFolder) -> bool:
        """Return whether we stay while another process delivers this run; one that cannot is asked to leave it to us.

        A delivery process whose trainer lives is not waited for, because it may go on for days.
        """
        if not self._syncs:
            return False
        if (state := folder.read_state()) is not None and state.last_error:
            self._ask_for(folder)
            return True
        watches = [self._watch_of(header.owner) for header in self._headers_of(folder)]
        return all(watch is None or not watch.alive() for watch in watches)

    def _ask_for(self, folder: RunFolder) -> None:
        if folder.run_key not in self._takeovers:
            lock = FileLock(folder.takeover_lock, blocking=False)
            with contextlib.suppress(Timeout):  # another sync asks
                lock.acquire()
                self._takeovers[folder.run_key] = lock

    def _hand_over(self) -> None:
        """Leave the runs that we cannot deliver to a ``sync`` that asks for them; it may have better credentials."""
        for run_key, (drain, lock) in list(self._drains.items()):
            if not self._syncs and drain.state.last_error and is_held(drain.folder.takeover_lock) and drain.release():
                logger.info("run %s: left to a sync", run_key)
                self._drop(run_key, lock)

    def _drop(self, run_key: str, lock: FileLock) -> None:
        with self._drains_lock:
            del self._drains[run_key]
        lock.release()
        if (takeover := self._takeovers.pop(run_key, None)) is not None:
            takeover.release()

    def _show_uploading(self) -> None:
        """Show a ``sync`` that waits for us that a large file is on its way."""
        if (run_key := self._progress.uploading) in self._drains and time.monotonic() - self._progress.moved < 1:
            self._drains[run_key][0].folder.touch_state()

    def _is_ours(self, folder: RunFolder) -> bool:
        """Return whether we deliver this run: it is for our store, and it is our owner's or all its owners are dead.

        A ``sync`` delivers what it finds, whether its owner lives or not; a run's lock says who else delivers it.
        """
        opened = self._headers_of(folder)
        if not opened or any(not header.store.same_as(self._assignment.store) for header in opened):
            return False
        if self._syncs:
            return folder.run_key not in self._caught_up
        owners = {header.owner for header in opened}
        return self._assignment.owner in owners or all(self._known_dead(owner) for owner in owners)

    def _known_dead(self, owner: Owner) -> bool:
        # We cannot tell whether a process on another machine or in another container is alive.
        watch = self._watch_of(owner)
        return watch is not None and not watch.alive()

    def _headers_of(self, folder: RunFolder) -> list[SessionOpened]:
        return [header for journal in folder.journals() if (header := self._header(journal)) is not None]

    def _header(self, journal: Path) -> SessionOpened | None:
        if journal not in self._headers and (opened := read_opened(journal)) is not None:
            self._headers[journal] = opened
        return self._headers.get(journal)

    def _watch_of(self, owner: Owner) -> OwnerWatch | None:
        if owner not in self._watches:
            self._watches[owner] = OwnerWatch(owner) if owner.is_local() else None
        return self._watches[owner]

    def _finish_complete(self) -> None:
        for run_key, (drain, lock) in list(self._drains.items()):
            if drain.complete():
                drain.discover_sessions()
                if drain.finish():
                    self._drop(run_key, lock)
            elif self._syncs and drain.has_writer() and drain.caught_up() and drain.release():
                self._caught_up.add(run_key)  # its owner goes on writing, and may start a delivery process for that
                self._drop(run_key, lock)
