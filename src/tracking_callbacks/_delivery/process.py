"""The life of a delivery process: which runs it delivers, how it stays out of the trainer's way, and when it ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock, Timeout

from tracking_callbacks._delivery.drain import RunDrain
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.lead import Lead
from tracking_callbacks._delivery.log import log_to_stderr
from tracking_callbacks._delivery.priority import Priority
from tracking_callbacks._delivery.progress import Progress
from tracking_callbacks._delivery.renewal import Renewals
from tracking_callbacks._delivery.stores.choice import store_for
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._delivery.system_metrics import SystemSampler
from tracking_callbacks._journal.confined import delete
from tracking_callbacks._journal.handover import (
    DELIVERY_VARIABLE,
    REGISTRY_URI_VARIABLE,
    TRACKING_URI_VARIABLE,
    Assignment,
)
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, is_held
from tracking_callbacks._journal.owner import Owner, OwnerWatch, WriterWatch, watch_over
from tracking_callbacks._journal.pending import read_opened
from tracking_callbacks._journal.records import SessionOpened

__all__ = ["DeliveryProcess", "main"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_IDLE_POLL_SECONDS = 0.2
_IDLE_AFTER_SECONDS = 1.0
_FILES_SECONDS = 1.0  # between two looks at the files that grow; a file that was logged is seen at once
_SCAN_SECONDS = 0.5
_BEGINNING_SECONDS = 0.2
_LINGER_SECONDS = 5.0  # to wait for the next run of a sweep, so that a process is not started for each
_KEEP_DELIVERED_SECONDS = 7 * 24 * 3600.0
_KEEP_IDS_SECONDS = 90 * 24 * 3600.0  # a program may use a provisional id long after its run; it is a small file


def main(root: Path) -> int:
    """Deliver the runs under `root` that belong to the launching process or to dead processes; return 0."""
    log_to_stderr()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Slurm and Kubernetes signal every process of a job; what the trainer still logs must be delivered.
        signal.signal(name, signal.SIG_IGN)
    assignment = Assignment.decode(os.environ.pop(DELIVERY_VARIABLE))
    progress = Progress()
    heavy = HeavyProcess(progress.add, root)
    store = store_for(os.environ[TRACKING_URI_VARIABLE], os.environ.get(REGISTRY_URI_VARIABLE), heavy)
    DeliveryProcess(JournalRoot(root), store, heavy, assignment, progress).deliver()
    return 0


class DeliveryProcess:
    """Delivers the runs of one owner to one store, and the runs that dead owners have left behind.

    On a local store, one process leads and delivers for all (`Lead`).

    Args:
        root: The journal root.
        store: The store to deliver to.
        heavy: Draws pictures.
        assignment: Whose runs to deliver, and for how long. With a ``stall_timeout``, the process delivers every run
            that no other process delivers, up to what its journals hold; owners on other machines or in other
            containers count as dead. It ends once neither its own runs nor those that another process delivers have
            made progress for that long.
        progress: Receives what gets on.
    """

    def __init__(
        self, root: JournalRoot, store: Store, heavy: HeavyProcess, assignment: Assignment, progress: Progress
    ) -> None:
        self._root = root
        self._store = store
        self._heavy = heavy
        self._renewals = Renewals(store.renew)
        self._sampler = SystemSampler()
        self._priority = Priority()
        self._assignment = assignment
        self._owner_watch = OwnerWatch(assignment.owner)
        self._watches: dict[Owner, OwnerWatch] = {assignment.owner: self._owner_watch}
        self._headers: dict[Path, SessionOpened] = {}
        self._drains: dict[str, tuple[RunDrain, FileLock]] = {}
        self._drains_lock = threading.Lock()
        self._stopping = threading.Event()
        self._files_thread = threading.Thread(target=self._files_lane, name="files", daemon=True)
        self._files_wanted = threading.Event()
        self._progress = progress
        self._elsewhere: dict[str, int] = {}
        self._takeovers: dict[str, FileLock] = {}
        self._handed_over: set[str] = set()
        self._lead = Lead(root, assignment.store)
        self._caught_up: set[str] = set()
        self._root_written = 0
        self._look_until = 0.0
        self._died: float | None = None
        self._busy_at = time.monotonic()
        self._idle_since: float | None = None

    def deliver(self) -> None:
        """Deliver until nothing is left to do or the grace period has ended."""
        _prune(self._root)
        self._progress.watch_sending()
        loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        loaded: Future[None] | None = None
        scanned: float | None = None
        while True:
            now = time.monotonic()
            if scanned is None or now - scanned >= _SCAN_SECONDS or self._run_may_have_begun(now):
                scanned = now
                self._show_uploading()
                self._hand_over()
                self._take_on_runs()
                for drain in self._current():
                    drain.look_for_alerts()
            if self._drains and loaded is None:
                loaded = loader.submit(self._load)
            self._priority.adapt(
                waiting=max((drain.waiting(now) for drain in self._current()), default=0.0),
                training=any(drain.has_writer() for drain in self._current()),
            )
            self._renew_credentials()
            worked = loaded is not None and loaded.done() and self._step_points(loaded)
            self._finish_complete()
            if self._done(now):
                break
            if not worked:
                self._pause(loaded)
        self._stopping.set()
        self._files_wanted.set()
        for lock in (*(lock for _, lock in self._drains.values()), *self._takeovers.values()):
            lock.release()
        self._lead.release()
        if not self._owner_watch.alive():
            self._root.remove_scratch()
        logger.info("delivery ends; runs left: %d", len(self._drains))

    def _step_points(self, loaded: Future[None]) -> bool:
        loaded.result()  # raises what has kept MLflow from being imported
        if not self._files_thread.is_alive():
            self._files_thread.start()
        drains = self._current()
        worked = [drain.step_points() for drain in drains]
        if any(drain.has_files() for drain in drains):
            self._files_wanted.set()
        return any(worked)

    def _pause(self, loaded: Future[None] | None) -> None:
        """Wait a moment; a process without undelivered records looks less often."""
        if loaded is not None and not loaded.done():
            wait([loaded], timeout=_POLL_SECONDS)
            return
        now = time.monotonic()
        if (loaded is None and not self._elsewhere) or any(drain.waiting(now) for drain in self._current()):
            self._busy_at = now
        time.sleep(_POLL_SECONDS if now - self._busy_at < _IDLE_AFTER_SECONDS else _IDLE_POLL_SECONDS)

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
            return not (self._drains or self._elsewhere) or now - self._died > self._assignment.grace
        return idle > _LINGER_SECONDS

    def _load(self) -> None:
        self._store.load()  # before several threads use MLflow: it would stay half imported
        self._progress.finish_step()
        gc.freeze()
        gc.enable()

    def _files_lane(self) -> None:
        while not self._stopping.is_set():
            self._files_wanted.clear()
            worked = [drain.step_files() for drain in self._current()]
            self._heavy.end_if_idle()
            if not any(worked):
                self._files_wanted.wait(_FILES_SECONDS)

    def _current(self) -> list[RunDrain]:
        with self._drains_lock:
            return [drain for drain, _ in self._drains.values()]

    def _run_may_have_begun(self, now: float) -> bool:
        """Return whether to look for new runs at once, because a program may wait for the id of its run.

        A run's folder changes the journal root, and its journal follows a moment later.
        """
        written = self._root.written()
        if written != self._root_written:
            self._root_written, self._look_until = written, now + _BEGINNING_SECONDS
        return now < self._look_until

    def _take_on_runs(self) -> None:
        for drain in self._current():
            drain.discover_sessions()
        elsewhere: dict[str, int] = {}
        leads = self._syncs or not self._lead.shared or self._lead.taken()
        for folder in self._root.runs():
            if folder.run_key not in self._drains and self._is_ours(folder) and self._take_on(folder, leads=leads):
                elsewhere[folder.run_key] = folder.state_written()
        if elsewhere != self._elsewhere:
            self._elsewhere = elsewhere
            self._progress.finish_step()

    def _take_on(self, folder: RunFolder, *, leads: bool) -> bool:
        """Deliver a run from now on, unless another process does; return whether we wait for that process."""
        if folder.run_key not in self._takeovers:
            if not leads:
                return self._leave(folder)
            if not self._syncs and is_held(folder.takeover_lock):
                return folder.run_key in self._handed_over
        folder.remove_planted()
        lock = FileLock(folder.drain_lock, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            return self._waits_for(folder)
        if not folder.journals():  # another process just delivered it, and taking the lock recreated the folder
            lock.release()
            delete(folder.path, within=self._root.path)
            return False
        drain = RunDrain(
            folder,
            self._root,
            self._store,
            self._heavy,
            self._watch_of,
            self._sampler,
            self._progress,
            sends_alerts=not self._syncs,
        )
        with self._drains_lock:
            self._drains[folder.run_key] = (drain, lock)
        return False

    @property
    def _syncs(self) -> bool:
        """Whether this is an explicit ``sync``."""
        return self._assignment.stall_timeout is not None

    def _waits_for(self, folder: RunFolder) -> bool:
        """Return whether we stay while another process delivers this run; one that cannot is asked to leave it to us.

        A ``sync`` does not wait for a delivery process whose trainer lives, because it may go on for days.
        """
        if not self._syncs:
            return folder.run_key in self._handed_over or (self._lead.shared and self._is_of_owner(folder))
        if (state := folder.read_state()) is not None and state.last_error:
            self._ask_for(folder)
            return True
        opened = self._headers_of(folder)
        return not any(self._watch_of(header.owner, journal).alive() for journal, header in opened.items())

    def _leave(self, folder: RunFolder) -> bool:
        """Leave a run of our owner to the process that leads, unless that fails; return False for others' runs."""
        if not self._is_of_owner(folder):
            return False
        if (state := folder.read_state()) is not None and state.last_error:
            self._ask_for(folder)  # our environment may hold what that process lacks
        folder.share()
        return True

    def _ask_for(self, folder: RunFolder) -> None:
        if folder.run_key not in self._takeovers:
            lock = FileLock(folder.takeover_lock, blocking=False)
            with contextlib.suppress(Timeout):  # another sync asks
                lock.acquire()
                self._takeovers[folder.run_key] = lock

    def _hand_over(self) -> None:
        """Leave the runs that we cannot deliver to a ``sync`` that asks for them; it may have better credentials.

        We take back what it has not delivered when it ends.
        """
        for run_key, (drain, lock) in list(self._drains.items()):
            if not self._syncs and drain.state.last_error and is_held(drain.folder.takeover_lock) and drain.release():
                logger.info("run %s: left to a sync", run_key)
                self._handed_over.add(run_key)
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

        A ``sync`` delivers what it finds, whether its owner lives or not; a run's lock says who else delivers it. The
        process that leads delivers what others leave to it.
        """
        opened = self._headers_of(folder)
        if not opened or any(not header.store.same_as(self._assignment.store) for header in opened.values()):
            return False
        if self._syncs:
            return folder.run_key not in self._caught_up
        if self._is_of_owner(folder) or all(
            self._known_dead(header.owner, journal) for journal, header in opened.items()
        ):
            return True
        return folder.shared and all(
            header.store == self._assignment.store and header.owner.is_local() for header in opened.values()
        )

    def _is_of_owner(self, folder: RunFolder) -> bool:
        return any(header.owner == self._assignment.owner for header in self._headers_of(folder).values())

    def _known_dead(self, owner: Owner, journal: Path) -> bool:
        # Of a process on another machine or in another container, a lock that is gone is no proof.
        return owner.is_local() and not self._watch_of(owner, journal).alive()

    def _headers_of(self, folder: RunFolder) -> dict[Path, SessionOpened]:
        return {journal: header for journal in folder.journals() if (header := self._header(journal)) is not None}

    def _header(self, journal: Path) -> SessionOpened | None:
        if journal not in self._headers and (opened := read_opened(journal)) is not None:
            self._headers[journal] = opened
        return self._headers.get(journal)

    def _watch_of(self, owner: Owner, journal: Path) -> OwnerWatch | WriterWatch:
        if owner in self._watches:
            return self._watches[owner]
        watch = watch_over(owner, journal)
        if isinstance(watch, OwnerWatch):
            self._watches[owner] = watch
        return watch

    def _finish_complete(self) -> None:
        for run_key, (drain, lock) in list(self._drains.items()):
            if drain.complete():
                drain.discover_sessions()
                if drain.finish():
                    self._drop(run_key, lock)
            elif self._syncs and drain.has_writer() and drain.caught_up() and drain.release():
                self._caught_up.add(run_key)  # its owner goes on writing, and may start a delivery process for that
                self._drop(run_key, lock)


def _prune(root: JournalRoot) -> None:
    now = time.time()
    root.prune(now - _KEEP_DELIVERED_SECONDS)
    if root.ids.exists():
        from tracking_callbacks._journal.provisional import ProvisionalIds

        ProvisionalIds(root).prune(now - _KEEP_IDS_SECONDS)
