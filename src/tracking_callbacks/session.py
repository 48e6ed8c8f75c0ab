"""One process writing to one run: opens the journal, stamps and appends records, counts what could not be kept."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tracking_callbacks.folders import JournalRoot, RunFolder, RunState, SessionState, session_name
from tracking_callbacks.journal import JournalWriter
from tracking_callbacks.launch import DeliveryLauncher
from tracking_callbacks.owner import current_owner
from tracking_callbacks.records import Intent, Record, RunEnded, SessionOpened, Status, entries, now_ms
from tracking_callbacks.report import DeliveryReport
from tracking_callbacks.settings import Settings

__all__ = ["MetricClock", "RunJournal", "Session", "writable_root"]

logger = logging.getLogger("tracking_callbacks")

_CLOCK_JUMP_MS = 60_000
_CHECK_DELIVERY_NS = 1_000_000_000
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.1  # the training's own thread may be the one that looks


class MetricClock:
    """Gives each point the present millisecond, and a later one to a true repeat.

    MLflow stores one of several identical (key, time, step, value): that is what makes a re-sent batch harmless, and
    what would swallow the second of two equal points logged within one millisecond.
    """

    def __init__(self) -> None:
        self._now = 0
        # By step. A step that was logged once keeps its points as they came: to take them apart costs a microsecond
        # of six, and most steps are logged once within a millisecond.
        self._seen: dict[int, dict[str, float] | set[tuple[str, float | None]]] = {}

    def stamp(self, step: int, points: dict[str, float]) -> int:
        """Return the timestamp, in milliseconds since the epoch, for `points` at `step`."""
        now = now_ms()
        if now > self._now or now < self._now - _CLOCK_JUMP_MS:
            self._now = now
            self._seen = {step: points}
            return now
        earlier = self._seen.get(step)
        if earlier is None:
            self._seen[step] = points
            return self._now
        known = earlier if isinstance(earlier, set) else _identities(earlier)
        identities = _identities(points)
        if known.isdisjoint(identities):
            known |= identities
            self._seen[step] = known
        else:
            self._now += 1
            self._seen.clear()
            self._seen[step] = identities
        return self._now


def _identities(points: dict[str, float]) -> set[tuple[str, float | None]]:
    # NaN equals nothing, not even another NaN, but MLflow stores all NaNs alike.
    return {(key, None if math.isnan(value) else value) for key, value in points.items()}


class Session:
    """The journal of one stretch of one process's writing to one run.

    Attributes:
        folder: The run's folder.
        name: The session's key in the delivery state.
        appended: Number of entries that the journal holds.
        dropped: Number of entries that it could not take.
        withdrawn: Number of entries that it holds and whose files had to make room.
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
        """Write one record; what cannot be written is counted."""
        try:
            if self._writer is None:
                raise FileNotFoundError("no journal")
            if type(record) is RunEnded:
                self._writer.append_last(record)
            else:
                self._writer.append(record)
        except (OSError, ValueError) as error:
            self.drop(entries(record), error)
        else:
            self.appended += entries(record)

    def close(self) -> None:
        """Seal the journal."""
        self.closed = True
        if self._writer is not None:
            self._writer.close()

    def acknowledged(self, state: SessionState) -> bool:
        """Return whether the store has all of the journal, and its end if it has ended; also if that is gone."""
        if self._writer is None or not self._writer.path.exists():
            return True  # nothing (more) that could be delivered
        return state.closed if self.closed else min(state.points, state.files) >= self._writer.position

    def drop(self, count: int, error: Exception) -> None:
        """Count what could not be kept; the first time is a warning."""
        level = logging.DEBUG if self.dropped else logging.WARNING
        logger.log(level, "cannot write to %s (%s): what is logged meanwhile is dropped", self.folder.path, error)
        self.dropped += count


class RunJournal:
    """Everything that this process writes to one run: a session, and another one after each end.

    Attributes:
        root: The journal root that holds the run's folder.
        flush_timeout: Seconds that the interpreter's exit waits for delivery at most.
    """

    def __init__(
        self,
        settings: Settings,
        root: JournalRoot,
        launcher: DeliveryLauncher | None,
        opened: SessionOpened,
        *,
        on_open: Callable[[], None],
    ) -> None:
        self.flush_timeout = settings.flush_timeout
        self.root = root
        self._launcher = launcher
        self._opened = opened
        self._on_open = on_open
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._staged = 0
        self._told = False
        self._checked_delivery = 0
        self._run_id = opened.run_id
        self._last_state = RunState()
        self._sessions: list[Session] = []
        self._session = self._open(opened)

    @property
    def offline(self) -> bool:
        """Whether nothing is delivered until ``tracking-callbacks sync``; so also in a forked child."""
        return self._launcher is None or self.inert

    @property
    def inert(self) -> bool:
        """A forked child inherits the object, but neither the run nor its journal."""
        return os.getpid() != self._pid

    @property
    def live_folder(self) -> Path:
        """Folder of the files that grow while the open session lasts; delivery uploads them as they grow."""
        return self._session.folder.live(self._session.name)

    def append(self, record: Record) -> None:
        """Write a record, to a new session where the run has ended."""
        if os.getpid() != self._pid:  # inert; without the property's call, for this is what a step waits for
            return
        with self._lock:
            (self._writable_session() if self._session.closed else self._session).append(record)
        now = time.monotonic_ns()
        if now - self._checked_delivery > _CHECK_DELIVERY_NS:
            self._checked_delivery = now
            self.ensure_delivery()
            self.tell_trouble()

    def stage(self, name: str, write: Callable[[Path], object], record: Callable[[str], Record]) -> Path | None:
        """Write files under the run's folder, then the record that names them; return where, None if they were not.

        Args:
            name: Name of the file or folder to write; where it is empty, a folder without a name of its own.
            write: Called with the path to write to.
            record: Called with that path relative to the run's folder.
        """
        if self.inert:
            return None
        with self._lock:
            session = self._writable_session()
            self._staged += 1
            holder = f"staged/{session.name}-{self._staged:06d}"
            staged = f"{holder}/{name}" if name else holder
            target = session.folder.path / staged
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                write(target)
            except OSError as error:
                session.drop(entries(record(staged)), error)
                shutil.rmtree(session.folder.path / holder, ignore_errors=True)
                return None
            self.append(record(staged))
            return target

    def withdraw(self, count: int) -> None:
        """Count entries whose files are gone, by intent, before they were delivered."""
        with self._lock:
            self._session.withdrawn += count

    def seal(self, status: Status | None) -> None:
        """End the open session, if there is one, with what it has to say about the run's status."""
        if self.inert:
            return
        with self._lock:
            if not self._session.closed:
                self._session.append(RunEnded(now_ms(), status))
                self._session.close()
                if self._session.dropped:
                    logger.warning("%d entries could not be kept in %s", self._session.dropped, self.root.path)
                self.ensure_delivery()

    def reopen(self, intent: Intent) -> None:
        """Open another session of the run."""
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
            dropped=sum(session.dropped for session in self._sessions) + withdrawn,
            damaged=sum(done.damaged for _, done in pairs),
            complete=all(session.acknowledged(done) for session, done in pairs),
            last_error=state.last_error,
        )

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

    def tell_trouble(self) -> None:
        """Say once, in the training's own log, what will not mend itself."""
        if self._told or self._launcher is None:
            return
        state = self.state()
        own = (state.sessions.get(session.name) for session in self._sessions)
        refused = sum(done.rejected for done in own if done is not None)
        if state.blocked:
            self._told = True
            logger.warning("nothing is delivered: %s; it is kept in %s", state.last_error, self.root.path)
        elif refused:
            self._told = True
            logger.warning("the store refused %d entries; rejected.jsonl among the artifacts says why", refused)

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
        return session


def writable_root(path: Path) -> JournalRoot:
    """Return the journal root at `path`, or one in the temp folder, with a warning, where `path` cannot be written."""
    root = JournalRoot(path)
    try:
        root.prepare()
    except OSError as error:
        user = os.getuid() if hasattr(os, "getuid") else 0
        fallback = JournalRoot(Path(tempfile.gettempdir()) / f"tracking_callbacks-{user}")
        reason = error.strerror or error
        logger.warning("the journal root %s cannot be used (%s); using %s", path, reason, fallback.path)
        fallback.prepare()
        return fallback
    return root
