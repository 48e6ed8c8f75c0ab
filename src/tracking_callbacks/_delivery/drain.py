"""Delivers one run folder: two lanes read its journals, then the run's end is delivered."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tracking_callbacks._delivery.backoff import Backoff, Pace
from tracking_callbacks._delivery.batches import Batch, coalesce
from tracking_callbacks._delivery.describing import deliver_descriptions
from tracking_callbacks._delivery.failures import DeliveryError, NotYetVisible, Refused, Transient
from tracking_callbacks._delivery.files import FileRecord, deliver_file, discard_staged, keep_staged
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.late_tags import LateTags
from tracking_callbacks._delivery.live_files import LiveFiles
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.progress import Progress
from tracking_callbacks._delivery.rejection import SURPLUS_PARAMS, add_refused, count_refused, send_batch
from tracking_callbacks._delivery.replay import delivered_before
from tracking_callbacks._delivery.run_resolver import PARENT_TAG, RunResolver, known_id
from tracking_callbacks._delivery.session_journal import Ending, SessionJournal, size_of
from tracking_callbacks._delivery.stores.store import SESSION_TAG, Store
from tracking_callbacks._delivery.system_metrics import RunSystemMetrics, SystemSampler
from tracking_callbacks._journal.frames import read_records
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, RunState, SessionState, session_name
from tracking_callbacks._journal.owner import Owner, OwnerWatch, WriterWatch
from tracking_callbacks._journal.pending import read_opened
from tracking_callbacks._journal.records import (
    ERROR_TAG,
    Artifact,
    Automatic,
    Dataset,
    DeleteModel,
    Describe,
    Drawing,
    Model,
    Promote,
    StoreCall,
    count_entries,
)

if TYPE_CHECKING:
    from tracking_callbacks._delivery.alerts import AlertWatch

__all__ = ["RunDrain"]

logger = logging.getLogger(__name__)

_ASKING_BYTES = 256 * 1024  # of a journal, above which the store is asked what it has of it
_LOOK_SECONDS = 1.0  # between two searches for something that is not visible yet
_REJECTED_TAG = "tracking_callbacks.rejected"
_RESUMED_AT_TAG = "tracking_callbacks.resumed_at_step"
_NAME_TAG = "mlflow.runName"
_DROPPED_CHECKPOINTS_TAG = "tracking_callbacks.dropped_checkpoints"


class RunDrain:
    """The delivery of one run.

    The points lane (metrics, params, tags) and the files lane (artifacts, datasets, models) read the journals
    independently, each with its own acknowledged offset. Two threads may drive them, so that a large checkpoint does
    not hold back the loss curve. The state file is updated after every request that the store acknowledges.

    Args:
        folder: The run's folder; the caller holds its drain lock.
        root: The journal root that contains the folder.
        store: The store to deliver to.
        heavy: Draws pictures.
        watch: Returns the watch over the process that writes a journal, or None if that counts as dead.
        sampler: Samples this machine's system metrics for the runs that ask for them.
        progress: Receives what gets on.
        sends_alerts: Tell the user what they want to be told of.
    """

    def __init__(
        self,
        folder: RunFolder,
        root: JournalRoot,
        store: Store,
        heavy: HeavyProcess,
        watch: Callable[[Owner, Path], OwnerWatch | WriterWatch | None],
        sampler: SystemSampler,
        progress: Progress,
        *,
        sends_alerts: bool = False,
    ) -> None:
        self.folder = folder
        self.root = root
        # A run that was delivered before continues from its final state, in which its former sessions are closed.
        self.state = folder.read_state() or root.final_state(folder.run_key) or RunState()
        self.state.complete = False
        self.sessions: list[SessionJournal] = []
        self._store = store
        self._heavy = heavy
        self._watch = watch
        self._once = Once(self.state.attempts, self._save)
        self._resolver = RunResolver(root, store, self._once)
        self._late_tags = LateTags(self.state.attempts, store, self._save)
        self._live = LiveFiles(folder, root, store)
        self._system = RunSystemMetrics(sampler, store)
        self._lock = threading.Lock()
        self._points_backoff, self._files_backoff = Backoff(), Backoff()
        self._sent = 0.0
        self._pace = Pace()
        self._behind = False
        self._waiting_since: float | None = time.monotonic()
        self._progress = progress
        self._released = False
        self._in_files_lane = threading.Lock()
        self._size_at_start = {journal: size_of(journal) for journal in folder.journals()}
        self._sends_alerts = sends_alerts
        self._alerts: AlertWatch | None = None
        self._running: set[str] = set()
        self._ended: set[str] = set()
        self.discover_sessions()

    # -- what there is to do -----------------------------------------------------------------------------------------

    def discover_sessions(self) -> None:
        """Add sessions for journals that have appeared in the folder."""
        known = {session.name for session in self.sessions}
        for journal in self.folder.journals():
            if session_name(journal) in known or (opened := read_opened(journal)) is None:
                continue
            state = self.state.sessions.setdefault(session_name(journal), SessionState())
            self.sessions.append(SessionJournal(journal, opened, state, self._watch(opened.owner, journal)))

    def complete(self) -> bool:
        """Return whether the store has the whole run, with the end of every session, and no alert is on its way."""
        return all(session.state.closed for session in self.sessions) and (self._alerts is None or self._alerts.idle())

    def look_for_alerts(self) -> None:
        """Look for what the user wants to be told of; a ``sync`` does not, because its journals may be from elsewhere.

        An alert may run a program, so only the journals of this machine's own processes are asked for them.
        """
        if not self._sends_alerts or not any(session.opened.alerts for session in self.sessions):
            return
        if self._alerts is None:
            from tracking_callbacks._delivery.alerts import AlertWatch  # few runs have any

            self._alerts = AlertWatch(self.state, self._save)
        try:
            self._alerts.look([session for session in self.sessions if session.opened.owner.is_local()])
        except OSError as error:
            logger.warning("run %s: cannot look for alerts: %s", self.state.run_id or self.folder.run_key, error)

    def has_writer(self) -> bool:
        """Return whether a process still writes to the run, as of the last look at its journals."""
        return not all(session.known_finished for session in self.sessions)

    def waiting(self, now: float) -> float:
        """Return the seconds for which a metric, param or tag has waited to be sent; 0 if none does.

        Args:
            now: Monotonic time.
        """
        return 0.0 if self._waiting_since is None else now - self._waiting_since

    def has_files(self) -> bool:
        """Return whether the journals hold more for the files lane, as of the last look at them."""
        return any(session.size > session.state.files for session in self.sessions)

    def caught_up(self) -> bool:
        """Return whether the store has all that the journals held when this delivery of the run began."""
        return all(
            min(session.state.points, session.state.files) >= self._size_at_start.get(session.path, 0)
            for session in self.sessions
        )

    def release(self) -> bool:
        """Do nothing more for this run, so that another process can; return False while a file is being sent."""
        if self._in_files_lane.acquire(blocking=False):
            self._released = True
            self._in_files_lane.release()
        return self._released

    def try_now(self) -> None:
        """End the pauses after failures, because their reason may be gone."""
        self._points_backoff.succeed()
        self._files_backoff.succeed()

    def finish(self) -> bool:
        """Remove the folder of a complete run but keep its final state; return False if a session has opened in it."""
        return self._guarded(self._points_backoff, self._finish)

    def _finish(self) -> bool:
        self.look_for_alerts()  # for the last records and the status
        if not self.complete():
            return False
        self.state.complete = True
        self._save()
        self._live.keep_refused()
        if self.root.ids.exists():
            from tracking_callbacks._journal.provisional import ProvisionalIds

            ProvisionalIds(self.root).keep(self.folder.run_key, self.state)
        return self.root.remove_delivered(self.folder, self.state)

    # -- the points lane ---------------------------------------------------------------------------------------------

    def step_points(self) -> bool:
        """Deliver the metrics, params and tags that are due, and the end; return whether anything was done."""
        return self._guarded(self._points_backoff, self._step_points)

    def _step_points(self) -> bool:
        worked = False
        self._note_waiting()
        for session in self.sessions:
            if session.state.closed:
                continue
            if self.state.run_id is None:
                self._resolver.resolve(session.opened, self.state)
                self._save()
            if session.name not in self._running:
                if self._unsent_before(session):
                    continue
                self._open_session(session)
            assert self.state.run_id is not None
            self._system.send(session, self.state.run_id)
            if session.grew(session.state.points):
                worked |= self._send_points(session)
            elif session.exhausted() and self._live.all_uploaded(session.name):
                self._close_session(session)
                worked = True
        return worked

    def _note_waiting(self) -> None:
        now = time.monotonic()
        if not any(session.grew(session.state.points) for session in self.sessions if not session.state.closed):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now

    def _send_points(self, session: SessionJournal) -> bool:
        began = time.monotonic()
        if not session.finished() and not self._behind and began - self._sent < self._pace.seconds:
            return False
        chunk = session.read(session.state.points)
        for batch in coalesce(chunk.records):
            self._send(session, batch)
        self._behind = not chunk.at_end
        if chunk.at_end:
            self._waiting_since = began
        with self._lock:
            session.state.points = max(session.state.points, chunk.end)
            session.state.damaged += chunk.damaged
        self._sent = time.monotonic()
        if chunk.records or chunk.damaged:
            self._save()
        return bool(chunk.records)

    def _send(self, session: SessionJournal, batch: Batch) -> None:
        assert self.state.run_id is not None
        began = time.monotonic()
        if PARENT_TAG in batch.tags:
            batch.tags[PARENT_TAG] = known_id(self.root, batch.tags[PARENT_TAG])
        rejected: list[dict[str, Any]] = []
        with self._late_tags.noted(batch):
            if batch.deleted is not None:
                self._store.delete_tag(self.state.run_id, batch.deleted)
            elif len(batch):
                rejected = send_batch(self._store, self.state.run_id, batch)
        self._pace.note(time.monotonic() - began)
        for entry in rejected:
            self._reject(entry)
        refused = count_refused(rejected)
        with self._lock:
            session.state.delivered += batch.entries - refused
            session.state.rejected += refused
            session.state.surplus_params += count_refused(one for one in rejected if one["record"] == SURPLUS_PARAMS)
            if batch.end is not None:
                session.state.points = batch.end
        self._points_backoff.succeed()
        self._save()

    def _unsent_before(self, session: SessionJournal) -> bool:
        """Return whether a resumed session must wait, because its step is compared with the points before it."""
        if session.opened.resumed_at is None:
            return False
        earlier = self.sessions[: self.sessions.index(session)]
        return any(other.grew(other.state.points) for other in earlier if other.finished())

    def _open_session(self, session: SessionJournal) -> None:
        opened = session.opened
        assert self.state.run_id is not None
        if opened.intent == "none":
            self._running.add(session.name)
            return
        if session.grew(session.state.points + _ASKING_BYTES):
            self._skip_delivered(session, self.state.run_id)
        if opened.resumed_at is not None and opened.resumed_at < self._store.last_step(self.state.run_id):
            self._store.log_batch(self.state.run_id, Batch(tags={_RESUMED_AT_TAG: str(opened.resumed_at)}))
        if opened.intent == "own" and opened.resumed and self._newest(session):
            self._store.log_batch(self.state.run_id, Batch(tags={SESSION_TAG: str(opened.session)}))
            self._store.set_running(self.state.run_id)
        if opened.resumed and opened.tags:
            self._store.log_batch(self.state.run_id, Batch(tags=dict(opened.tags)))
        elif not opened.resumed and not self._newest(session):  # a later session created the run, without these tags
            there = self._store.run(self.state.run_id).tags
            if missing := {key: text for key, text in opened.tags.items() if key not in there}:
                self._store.log_batch(self.state.run_id, Batch(tags=missing))
        self._running.add(session.name)

    def _skip_delivered(self, session: SessionJournal, run_id: str) -> None:
        """Pass over what the store has although the state does not say so."""
        if not (latest := self._store.run(run_id).metrics):
            return
        found = delivered_before(
            lambda: read_records(session.path, session.state.points),
            latest,
            lambda key: self._store.history(run_id, key, whole=False),
        )
        if found is not None:
            logger.info("run %s: the store has the first %d entries already", run_id, found.entries)
            with self._lock:
                session.state.points = found.end
                session.state.delivered += found.entries
            self._save()

    def _close_session(self, session: SessionJournal) -> None:
        if session.name not in self._ended:
            self._end_session(session)
            self._ended.add(session.name)
        assert self.state.run_id is not None
        self._late_tags.outlast(self.state.run_id, self.sessions)
        session.state.closed = True
        logger.info("run %s: session %s closed", self.state.run_id, session.name)
        self._save()

    def _end_session(self, session: SessionJournal) -> None:
        ending = session.ending()
        assert self.state.run_id is not None
        if session.opened.intent == "none":
            return
        self._resolver.delete_duplicates(self.folder.run_key, self.state)
        if any(one.rejected for one in self.state.sessions.values()):
            self._show_rejected()
        if ending.status is not None and (self._newest(session) or self._ended_last(session, ending)):
            if ending.status == "FINISHED" and session.opened.resumed:
                self._store.delete_tag(self.state.run_id, ERROR_TAG)  # an earlier session failed
            there = self._store.run(self.state.run_id)
            self.state.run_name, self.state.store = there.tags.get(_NAME_TAG, ""), session.opened.store.uri
            # The clock may have been set back since, or differ from that of the machine where the run began.
            self._store.set_terminated(self.state.run_id, ending.status, max(ending.timestamp, there.start_time or 0))
            if self.state.described and session.state.ended is None:  # it died, and could not ask for it
                deliver_descriptions(self._store, self.state.run_id, self.state, ending.status)
        logger.info("run %s: session %s ended, status %s", self.state.run_id, session.name, ending.status)

    def _newest(self, session: SessionJournal) -> bool:
        """Return whether this session decides the run's status: no later one is in this folder or in the store."""
        assert self.state.run_id is not None
        mine = session.opened.session
        if any(other.opened.intent == "own" and other.opened.session > mine for other in self.sessions):
            return False
        there = self._store.run(self.state.run_id).tags.get(SESSION_TAG, "")
        return not there.isdecimal() or int(there) <= mine

    def _ended_last(self, session: SessionJournal, ending: Ending) -> bool:
        """Return whether a session has ended the run after a later one did: two programs had it at the same time."""
        assert self.state.run_id is not None
        if session.state.ended is None:  # it died
            return False
        run = self._store.run(self.state.run_id)
        later = run.tags.get(SESSION_TAG, "")
        began = int(later) // 1_000_000 if later.isdecimal() else 0
        return run.ended is not None and ending.timestamp >= max(run.ended, began)

    # -- the files lane ----------------------------------------------------------------------------------------------

    def step_files(self) -> bool:
        """Deliver the next artifacts, datasets and models; return whether anything was done."""
        with self._in_files_lane:
            if self._released:
                return False
            self._progress.begin_upload(self.folder.run_key)
            worked = self._guarded(self._files_backoff, self._step_files)
            self._progress.end_upload(delivered=worked)
            return worked

    def _step_files(self) -> bool:
        run_id = self.state.run_id
        if run_id is None:
            return False
        worked = False
        for session in self.sessions:
            if session.grew(session.state.files):
                worked |= self._read_files(session, run_id)
            if not session.state.closed:
                worked |= self._live.upload(session.name, run_id, final=session.finished())
        return worked

    def _read_files(self, session: SessionJournal, run_id: str) -> bool:
        chunk = session.read(session.state.files)
        worked = False
        reached = session.state.files
        for record, end in chunk.records:
            if isinstance(record, FileRecord):
                if isinstance(record, Model | Promote | Describe) and session.state.points < end:
                    break  # it refers to the metrics logged before it, so they must arrive first
                self._deliver_file(session, run_id, record, end)
                worked = True
            reached = end
        else:
            reached = chunk.end
        if reached > session.state.files:
            with self._lock:
                session.state.files = reached
                self._write_state()
        return worked

    def _deliver_file(self, session: SessionJournal, run_id: str, record: FileRecord, end: int) -> None:
        rejected = withdrawn = 0
        try:
            delivered = deliver_file(self._store, self._heavy, self._once, run_id, record, self.folder, self.state)
            if not delivered:
                withdrawn = 1
                count = withdrawn + sum(one.withdrawn for one in self.state.sessions.values())
                self._store.log_batch(run_id, Batch(tags={_DROPPED_CHECKPOINTS_TAG: str(count)}))
        except Refused as error:
            if run_id:
                self._store.check_active(run_id)
            rejected = count_entries(record)
            self._reject_file(record, str(error))
        self._files_backoff.succeed()
        with self._lock:
            session.state.rejected += rejected
            session.state.withdrawn += withdrawn
            session.state.delivered += count_entries(record) - rejected - withdrawn
            session.state.files = end
            self._write_state()
        discard_staged(record, self.folder)

    def _reject_file(self, record: FileRecord, reason: str) -> None:
        entry = {"record": type(record).__name__.lower(), "reason": reason} | _described(record)
        try:
            kept = keep_staged(record, self.folder, self.root)
        except OSError as error:
            raise Transient(f"cannot keep the files of a refused {entry['record']}: {error}") from error
        self._reject(entry | ({"kept": str(kept)} if kept else {}))

    # -- both --------------------------------------------------------------------------------------------------------

    def _guarded(self, backoff: Backoff, step: Callable[[], bool]) -> bool:
        """Run one step; after a failure, record the error in the state and begin a pause."""
        if not backoff.ready():
            return False
        try:
            worked = step()
        except NotYetVisible as error:
            self._show_error(str(error), level=logging.INFO)
            backoff.wait(_LOOK_SECONDS)
            return False
        except DeliveryError as error:
            hopeless = not isinstance(error, Transient)
            self._show_error(str(error), blocked=hopeless)
            backoff.fail(slowly=hopeless, at_least=error.retry_after if isinstance(error, Transient) else 0.0)
            return False
        except Exception as error:  # the only broad except in this process: a bug in one run must not stop the others
            logger.exception("run %s: unexpected error", self.state.run_id or self.folder.run_key)
            self._show_error(f"{type(error).__name__}: {error}")
            backoff.fail()
            return False
        if worked:
            self._progress.finish_step()
            self._show_error("")
        return worked

    def _show_error(self, message: str, *, blocked: bool = False, level: int = logging.WARNING) -> None:
        if message == self.state.last_error:
            return
        if message:
            logger.log(level, "run %s: %s", self.state.run_id or self.folder.run_key, message)
        self.state.last_error = message
        self.state.blocked = blocked
        self._save()

    def _reject(self, entry: dict[str, Any]) -> None:
        logger.warning("run %s: the store refused an entry: %s", self.state.run_id, entry)
        with contextlib.suppress(OSError):
            add_refused(self.folder.rejected, entry)

    def _show_rejected(self) -> None:
        assert self.state.run_id is not None
        count = sum(session.rejected for session in self.state.sessions.values())
        self._store.log_batch(self.state.run_id, Batch(tags={_REJECTED_TAG: str(count)}))
        if self.folder.rejected.exists():
            # An earlier delivery may have left its own list there, which a file of the same name would replace.
            first = min((session.opened for session in self.sessions), key=lambda opened: opened.session)
            place = f"tracking_callbacks/{first.session}" if first.resumed else "tracking_callbacks"
            self._store.log_artifact(self.state.run_id, self.folder.rejected, place)

    def _save(self) -> None:
        with self._lock:
            self._write_state()

    def _write_state(self) -> None:
        try:
            self.folder.write_state(self.state)
        except OSError as error:  # a full disk: go on, because sending something again after a crash does not double it
            logger.warning("run %s: cannot save the delivery state (%s)", self.state.run_id, error)


def _described(record: FileRecord) -> dict[str, object]:
    match record:
        case Artifact(staged=staged, artifact_path=place):
            return {"name": Path(staged).name, "artifact_path": place}
        case Automatic(artifact_path=place) | Drawing(artifact_path=place):
            return {"artifact_path": place}
        case DeleteModel() | Describe():
            return {}
        case StoreCall(call=call):
            return {"call": msgspec.msgpack.decode(call)}
        case Dataset(name=name) | Model(name=name) | Promote(name=name):
            return {"name": name}
