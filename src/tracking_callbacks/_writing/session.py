"""One process writing to one run: opens the journal, stamps and appends records, counts what could not be kept."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tracking_callbacks._journal.confined import delete
from tracking_callbacks._journal.frames import JournalWriter
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, RunState, SessionState, session_name
from tracking_callbacks._journal.owner import current_owner
from tracking_callbacks._journal.records import (
    Automatic,
    Intent,
    Metrics,
    Record,
    RunEnded,
    SessionOpened,
    Status,
    count_entries,
    now_ms,
)
from tracking_callbacks._values.alerts import lacking_variables
from tracking_callbacks._writing.clock import MetricClock
from tracking_callbacks._writing.forks import ForkedCount
from tracking_callbacks._writing.launch import DeliveryLauncher
from tracking_callbacks._writing.lookout import look_after
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks.settings import Settings

__all__ = ["RunJournal", "Session", "writable_root"]

logger = logging.getLogger(__name__)

_DROPPED_IN_FORKS_TAG = "tracking_callbacks.dropped_in_forks"
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.1  # the training thread may be the one that looks


class Session:
    """The journal of one process that writes to one run, from its opening to its end record.

    Attributes:
        folder: The run's folder.
        name: The session's key in the delivery state.
        appended: Number of entries that the journal holds.
        dropped: Number of entries that it could not take.
        withdrawn: Number of its entries whose files were dropped to make room.
        closed: The journal is sealed.
    """

    def __init__(self, root: JournalRoot, opened: SessionOpened) -> None:
        self.folder: RunFolder = root.run(opened.run_key)
        path = self.folder.journal(opened.session)
        self.name = session_name(path)
        self.appended = 0
        self.dropped = 0
        self.withdrawn = 0
        self.closed = False
        self._writer: JournalWriter | None = None
        try:
            with root.locked():
                self.folder.path.mkdir(mode=0o700, exist_ok=True)
                self._writer = JournalWriter(path)
        except (OSError, TimeoutError) as error:
            self.drop(0, error)
        else:
            # Twice: without its header a journal cannot be delivered, and one flipped byte must not cost a run.
            self.append(opened)
            self.append(opened)

    def append(self, record: Record) -> None:
        """Write one record, or count it as dropped."""
        try:
            if self._writer is None:
                raise FileNotFoundError("no journal")
            if type(record) is RunEnded:
                self._writer.append_last(record)
            else:
                self._writer.append(record)
        except (OSError, ValueError) as error:
            self.drop(count_entries(record), error)
        else:
            self.appended += count_entries(record)

    @property
    def position(self) -> int:
        """Bytes in the journal after the last record; 0 if there is no journal."""
        return 0 if self._writer is None else self._writer.position

    def close(self) -> None:
        """Seal the journal."""
        self.closed = True
        if self._writer is not None:
            self._writer.close()

    def acknowledged(self, state: SessionState) -> bool:
        """Return whether the store has the whole journal, and its end if it has one; also if the journal is gone."""
        if self._writer is None or not self._writer.path.exists():
            return True  # nothing (more) that could be delivered
        return state.closed if self.closed else min(state.points, state.files) >= self._writer.position

    def drop(self, count: int, error: Exception) -> None:
        """Count entries that could not be kept, and warn the first time."""
        level = logging.DEBUG if self.dropped else logging.WARNING
        logger.log(level, "cannot write to %s (%s): what is logged meanwhile is dropped", self.folder.path, error)
        self.dropped += count


class RunJournal:
    """Everything that this process writes to one run: one session, and another after each end.

    Attributes:
        root: The journal root that holds the run's folder.
        flush_timeout: Seconds that the interpreter's exit waits for delivery at most.
        waited: Seconds that earlier waits have spent without seeing the end of delivery.
    """

    waited: float = 0.0

    def __init__(
        self,
        settings: Settings,
        root: JournalRoot,
        launcher: DeliveryLauncher | None,
        opened: SessionOpened,
        *,
        on_open: Callable[[], None],
    ) -> None:
        self.flush_timeout = settings.delivery.flush_timeout
        self.root = root
        self._launcher = launcher
        self._opened = opened
        self._on_open = on_open
        self._pid = os.getpid()
        self._started, self._started_at = opened.timestamp, time.monotonic_ns()
        self._lock = threading.RLock()
        self._all_staged = threading.Condition(self._lock)
        self._clock = MetricClock()
        self._staged = 0
        self._staging: list[threading.Thread] = []  # that write files now
        self._warned = False
        self._dropped_in_forks = ForkedCount()
        self._warned_pid = self._pid
        self._run_id = opened.run_id
        self._last_state = RunState()
        self._sessions: list[Session] = []
        self._session = self._open(opened)
        channels = [channel for alert in opened.alerts for channel in alert.notify]
        if launcher is not None and (lacking := lacking_variables(channels, os.environ)):
            _warn_of_alerts(lacking)

    @property
    def offline(self) -> bool:
        """Whether nothing is delivered until ``tracking-callbacks sync``; True in a forked child."""
        return self._launcher is None or self.inert

    @property
    def inert(self) -> bool:
        """Whether this is a forked child, which inherits the object but may not write to its parent's journal."""
        return os.getpid() != self._pid

    @property
    def live_folder(self) -> Path:
        """Folder of the files that grow while the open session lasts; delivery uploads them as they grow."""
        return self._session.folder.live(self._session.name)

    def written(self) -> tuple[str, int]:
        """Return the name of the open session, and how many bytes its journal holds."""
        return self._session.name, self._session.position

    def has_acknowledged(self, written: tuple[str, int]) -> bool:
        """Return whether the store has what the journals held when `written` returned this."""
        name, position = written
        done = self.state().sessions.get(name, SessionState())
        return done.closed or min(done.points, done.files) >= position

    def append_metrics(self, step: int, points: dict[str, float]) -> None:
        """Stamp the points of one step with the present time and write them, to a new session where the run has ended.

        Args:
            step: A signed 64-bit integer.
            points: Values by name; the names are those that MLflow accepts.
        """
        if os.getpid() != self._pid:  # inert; without the property's call, because a training step waits for this
            self.drop_in_fork(len(points))
            return
        with self._lock:  # in the order of their stamps
            session = self._writable_session() if self._session.closed else self._session
            session.append(Metrics(self._clock.stamp(step, points), step, points))

    def append(self, record: Record) -> None:
        """Write a record, to a new session where the run has ended."""
        if self.inert:
            self.drop_in_fork(count_entries(record))
            return
        with self._lock:
            self._writable_session().append(record)

    def stage(self, name: str, write: Callable[[Path], object], record: Callable[[str], Record]) -> Path | None:
        """Write files under the run's folder, then the record that names them.

        Other threads can log meanwhile, also while a large file is copied. The run's end waits for it.

        Args:
            name: Name of the file or folder to write; where it is empty, a folder that has no name.
            write: Called with the path to write to. Its exceptions are passed on, an `OSError` apart.
            record: Called with that path relative to the run's folder.

        Returns:
            The path that was written to; None where it could not be written, which is counted, or in a forked child.
        """
        if self.inert:
            self.drop_in_fork(count_entries(record(name)))
            return None
        with self._lock:
            session = self._writable_session()
            self._staged += 1
            holder = f"staged/{session.name}-{self._staged:06d}"
            self._staging.append(threading.current_thread())  # the session stays open until the record is in it
        staged = f"{holder}/{name}" if name else holder
        target = session.folder.path / staged
        written = False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target)
            written = True
        except OSError as error:
            session.drop(count_entries(record(staged)), error)
        finally:
            with self._lock:
                if written:
                    session.append(record(staged))
                self._staging.remove(threading.current_thread())
                self._all_staged.notify_all()
            if not written:
                delete(session.folder.path / holder, within=session.folder.path)
        return target if written else None

    def drop_in_fork(self, count: int) -> None:
        """Count what a forked child has logged, which its parent's journal cannot take, and warn once per process."""
        if not count:
            return
        self._dropped_in_forks.add(count)
        if self._warned_pid != os.getpid():
            self._warned_pid = os.getpid()
            logger.warning(
                "what a forked process logs to its parent's run %s is dropped; pass run.run_id to that process, and "
                "log to MLflowTracker().join_run(run_id) there",
                self._run_id or self._opened.run_key,
            )

    def withdraw(self, count: int) -> None:
        """Count entries whose files were dropped on purpose before they were delivered."""
        with self._lock:
            self._session.withdrawn += count

    def seal(self, status: Status | None, *, at: int | None = None) -> None:
        """End the open session, if there is one, with the run's status; None leaves the status to another session.

        Args:
            status: The status.
            at: When the run ended, in milliseconds since the epoch; None means now.
        """
        if self.inert:
            return
        with self._lock:
            while self._others_stage():
                self._all_staged.wait(_POLL_SECONDS)  # releases the lock
            if not self._session.closed:
                if lost := self._dropped_in_forks.total():
                    self._session.append(Automatic({_DROPPED_IN_FORKS_TAG: str(lost)}))
                now = max(now_ms(), self._started + self._elapsed_ms()) if at is None else at
                self._session.append(RunEnded(now, status))
                self._session.close()
                if self._session.dropped:
                    logger.warning("%d entries could not be kept in %s", self._session.dropped, self.root.path)
                self.ensure_delivery()

    def reopen(self, intent: Intent, *, at_step: int | None = None) -> None:
        """Open another session of the run, which continues from `at_step` if that is known."""
        if self.inert:
            return
        with self._lock:
            self.seal(None)
            now = time.time_ns()
            self._session = self._open(
                SessionOpened(
                    run_key=self._opened.run_key,
                    session=max(now, self._opened.session + len(self._sessions)),
                    timestamp=now // 1_000_000,
                    owner=current_owner(),
                    store=self._opened.store,
                    experiment=self._opened.experiment,
                    intent=intent,
                    run_id=self.known_run_id(),
                    resumed=True,
                    system_metrics=self._opened.system_metrics and intent == "own",
                    resumed_at=at_step,
                    experiment_id=self._opened.experiment_id,
                    node=self._opened.node,
                )
            )

    def report(self) -> DeliveryReport:
        """Return what delivery has done so far with what this process wrote."""
        state = self.state()
        pairs = [(session, state.sessions.get(session.name, SessionState())) for session in self._sessions]
        delivered = sum(done.delivered for _, done in pairs)
        rejected = sum(done.rejected for _, done in pairs)
        withdrawn = sum(session.withdrawn for session in self._sessions)
        return DeliveryReport(
            delivered=delivered,
            pending=max(sum(session.appended for session in self._sessions) - delivered - rejected - withdrawn, 0),
            rejected=rejected,
            dropped=sum(session.dropped for session in self._sessions) + withdrawn + self._dropped_in_forks.total(),
            damaged=sum(done.damaged for _, done in pairs),
            complete=all(session.acknowledged(done) for session, done in pairs),
            last_error=state.last_error,
            rejected_files=self._rejected_files() if rejected else None,
        )

    def _rejected_files(self) -> Path | None:
        folder = self.root.rejected(self._opened.run_key)
        return folder if folder.exists() else None

    def state(self) -> RunState:
        """Return what delivery knows of the run, also after its folder is gone."""
        folder, key = self.root.run(self._opened.run_key), self._opened.run_key
        # The folder goes when all is delivered; its final state is written before that. So look twice, in this order.
        state = folder.read_state() or self.root.final_state(key) or folder.read_state()
        if state is None and not folder.path.exists():
            with (
                contextlib.suppress(OSError, TimeoutError),
                self.root.locked(_LOOK_SECONDS),
            ):  # on a full disk it comes after
                state = self.root.final_state(key)
        state = state or self._last_state
        self._last_state = state
        self._run_id = self._run_id or state.run_id
        return state

    def known_run_id(self) -> str | None:
        """Return the server's id of the run, if it is known by now."""
        return self._run_id or self.state().run_id

    def wait_for_run_id(self, seconds: float) -> str | None:
        """Return the server's id of the run; wait for it at most `seconds`, not at all when offline."""
        deadline = time.monotonic() + seconds
        while self.known_run_id() is None and not self.offline and time.monotonic() < deadline:
            self.ensure_delivery()
            time.sleep(_POLL_SECONDS)
        return self._run_id

    def ensure_delivery(self) -> None:
        """Start the delivery process if it should run and does not."""
        if self._launcher is not None and not self.inert:
            self._launcher.ensure_running()

    def warn_if_blocked(self) -> None:
        """Warn once, in the training process, about what needs the user: a blocked store, refused entries."""
        if self._warned or self._launcher is None:
            return
        state = self.state()
        own = [done for session in self._sessions if (done := state.sessions.get(session.name)) is not None]
        refused, surplus = sum(done.rejected for done in own), sum(done.surplus_params for done in own)
        if state.blocked:
            self._warned = True
            logger.warning("nothing is delivered: %s; it is kept in %s", state.last_error, self.root.path)
        elif refused and refused == surplus:
            self._warned = True
            logger.warning(
                "the store takes no more params: the last %d are in config/ and rejected.jsonl among the artifacts",
                surplus,
            )
        elif refused:
            self._warned = True
            kept = self._rejected_files()
            logger.warning(
                "the store refused %d %s; rejected.jsonl among the artifacts says why%s",
                *(refused, "entry" if refused == 1 else "entries", f", and {kept} keeps their files" if kept else ""),
            )

    def _elapsed_ms(self) -> int:
        """Return how long this process has written to the run, also where the clock was set back meanwhile."""
        return (time.monotonic_ns() - self._started_at) // 1_000_000

    def _others_stage(self) -> bool:
        """Return whether another thread writes files that the open session is to name."""
        here = threading.current_thread()  # an exception may have stopped it just before its clean-up
        return any(thread is not here and thread.is_alive() for thread in self._staging)

    def attend(self) -> bool:
        """Keep delivery running and warn about what needs the user; return False once everything is delivered."""
        if self.inert or (self._session.closed and not self._session.folder.path.exists()):
            return False
        self.ensure_delivery()
        if not self._session.closed:
            self.warn_if_blocked()
        return True

    def _writable_session(self) -> Session:
        if self._session.closed:
            self.reopen("amend")
        return self._session

    def _open(self, opened: SessionOpened) -> Session:
        self.ensure_delivery()  # before there is anything to deliver: a kill between the two must not orphan it
        session = Session(self.root, opened)
        self._sessions.append(session)
        self._on_open()
        self.ensure_delivery()
        if self._launcher is not None:
            look_after(self)
        return session


def writable_root(path: Path) -> JournalRoot:
    """Return the journal root at `path`, or one in the temp folder, with a warning, where `path` cannot be used."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"tracking_callbacks-{user}"
    root = JournalRoot(path)
    fallbacks: list[Callable[[], str]] = [
        lambda: os.path.join(tempfile.gettempdir(), name),
        lambda: tempfile.mkdtemp(prefix=f"{name}-"),
    ]
    for fallback in fallbacks:
        try:
            root.prepare()
        except OSError as error:
            where = f"{error.filename}: " if error.filename not in (None, str(root.path)) else ""
            following = Path(fallback())
            logger.warning(
                "the journal root %s cannot be used (%s%s); using %s",
                *(root.path, where, error.strerror or error, following),
            )
            root = JournalRoot(following)
        else:
            return root
    root.prepare()
    return root


@functools.cache
def _warn_of_alerts(lacking: str) -> None:
    logger.warning("alerts cannot be sent: %s", lacking)
