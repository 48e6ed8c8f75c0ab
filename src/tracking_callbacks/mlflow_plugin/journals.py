"""The runs that this process writes to, for one real store: how they are opened, found again and waited for."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from tracking_callbacks._journal.calls import Call, encode_call
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE
from tracking_callbacks._journal.layout import JournalRoot, RunFolder
from tracking_callbacks._journal.owner import current_owner
from tracking_callbacks._journal.provisional import NotKnownYetError, Provisional, ProvisionalIds
from tracking_callbacks._journal.records import AlertRule, Intent, SessionOpened, StoreCall, now_ms
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._values.store_uri import real_uri
from tracking_callbacks._writing.launch import launcher_for
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.mlflow_plugin.program_run import ProgramRun
from tracking_callbacks.settings import (
    DISABLING_VARIABLES,
    EXPERIMENT_VARIABLE,
    Settings,
    resolve_settings,
)

__all__ = ["PARENT_TAG", "Journals", "journals_for"]

T = TypeVar("T")

PARENT_TAG = "mlflow.parentRunId"
_ID_SECONDS = 2.0
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.01
_AWAY_SECONDS = 15.0


class Journals:
    """What this process writes for one real store.

    Args:
        tracking_uri: The real tracking store.
        registry_uri: The real model registry, where it is not the tracking store's.
    """

    def __init__(self, tracking_uri: str, registry_uri: str | None) -> None:
        self._uris = tracking_uri, registry_uri
        self._settings: Settings | None = None
        self._root: JournalRoot | None = None
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._runs: dict[str, ProgramRun] = {}  # by every id that the program knows them by
        self._calls: ProgramRun | None = None
        self.homes: dict[str, ProgramRun] = {}  # whose journals create the logged models and versions of this process
        self._away_until = 0.0

    def begin_in_fork(self) -> None:
        """Forget the runs of the parent process: this one opens journals that are its own."""
        self._begin()

    @property
    def settings(self) -> Settings:
        """The settings, resolved when they are first needed."""
        if self._settings is None:
            # What the program asks for takes precedence, and the switches of other integrations are not the plugin's.
            ignored = (TRACKING_URI_VARIABLE, EXPERIMENT_VARIABLE, *DISABLING_VARIABLES)
            environment = {name: text for name, text in os.environ.items() if name not in ignored}
            try:
                self._settings = resolve_settings(
                    self._uris[0],
                    "Default",
                    registry_uri=self._uris[1],
                    record=False,
                    environ=environment,
                )
            except ConfigError as error:
                raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return self._settings

    @property
    def root(self) -> JournalRoot:
        """The journal root, which may not exist yet."""
        return self._root or JournalRoot(self.settings.journal_root)

    @property
    def ids(self) -> ProvisionalIds:
        """The provisional ids of the journal root."""
        return ProvisionalIds(self.root)

    def writable_root(self) -> JournalRoot:
        """Return the journal root, made where it does not exist.

        Raises:
            MlflowException: It cannot be written.
        """
        if self._root is None:
            root = JournalRoot(self.settings.journal_root)
            try:
                root.prepare()
            except OSError as error:
                raise MlflowException(
                    f"the journal root {root.path} cannot be used ({error.strerror or error}); set "
                    "TRACKING_CALLBACKS_JOURNAL to a folder that can be written",
                    INVALID_PARAMETER_VALUE,
                ) from error
            self._root = root
        return self._root

    # -- runs --------------------------------------------------------------------------------------------------------

    def create_run(self, experiment_id: str, start_time: int, tags: Mapping[str, str], run_name: str) -> ProgramRun:
        """Create a run; its `given_id` is the server's id if that answers in time, and provisional otherwise."""
        run = self._open(
            uuid.uuid4().hex,
            intent="own",
            timestamp=max(start_time, 0),
            run_name=run_name,
            tags=dict(tags),
            parent_id=tags.get(PARENT_TAG),
            experiment_id=experiment_id,
        )
        run.given_id = self._promised(run, run.run_key, "run", lambda: run.journal.state().run_id)
        with self._lock:
            self._runs[run.given_id] = self._runs[run.run_key] = run
        return run

    def _promised(self, run: ProgramRun, provisional: str, kind: str, known: Callable[[], str | None]) -> str:
        """Return the server's id if it is known in time, else `provisional`, which is written down as such."""
        if (found := self.wait_for(known, run, _ID_SECONDS)) is not None:
            return found
        try:
            self.ids.promise(provisional, Provisional(kind, run.run_key))  # type: ignore[arg-type]
        except OSError as error:
            raise MlflowException(f"{self.root.path} cannot be written: {error}") from error
        return known() or provisional

    def run(self, run_id: str, exists: Callable[[str], None]) -> ProgramRun:
        """Return the run to write to.

        Args:
            run_id: The server's id, or a provisional one.
            exists: Raises an error if the server says that there is no such run.
        """
        run = self._runs.get(run_id)
        return run if run is not None else self._join(run_id, exists)

    def own_run(self, run_id: str) -> ProgramRun | None:
        """Return the run if this process writes to it already."""
        if (run := self._runs.get(run_id)) is None:
            for one in list(self._runs.values()):  # the program has learnt the server's id of a provisional one
                if one.given_id == one.run_key and one.journal.known_run_id() == run_id:
                    self._runs[run_id] = run = one
        return run

    def _join(self, run_id: str, exists: Callable[[str], None]) -> ProgramRun:
        if (run := self.own_run(run_id)) is not None:
            return run
        if self.ids.find(run_id) is None:
            exists(run_id)
        key = uuid.uuid4().hex
        try:
            known = self.ids.real(run_id)
        except NotKnownYetError:
            key, known = run_id, ""
        with self._lock:
            if run_id not in self._runs:
                run = self._open(key, intent="join", timestamp=now_ms(), run_id=known or None, resumed=True)
                run.given_id = run_id
                self._runs[run_id] = run
            return self._runs[run_id]

    def forget(self, run_id: str) -> None:
        """Let go of a run, because the program has changed it on the server in a way that its writes must notice."""
        if (run := self.own_run(run_id)) is not None:
            run.journal.seal(None)
            with self._lock:
                self._runs = {known: one for known, one in self._runs.items() if one is not run}

    def calls(self) -> ProgramRun:
        """Return what takes the calls that belong to no run."""
        with self._lock:
            if self._calls is None:
                self._calls = self._open(
                    uuid.uuid4().hex, intent="none", timestamp=now_ms(), run_name=f"calls of {_program()}"
                )
                self._calls.joined = True
            return self._calls

    def _open(self, run_key: str, *, intent: Intent, timestamp: int, **fields: object) -> ProgramRun:
        settings, root = self.settings, self.writable_root()
        opened = SessionOpened(
            run_key=run_key,
            session=time.time_ns(),
            timestamp=timestamp,
            owner=current_owner(),
            store=settings.store,
            experiment="(by id)",
            intent=intent,
            alerts=tuple(AlertRule(one.when, one.channels) for one in settings.alerts) if intent == "own" else (),
            **fields,  # type: ignore[arg-type]
        )
        launcher = None if settings.delivery.offline else launcher_for(settings, root.path)
        return ProgramRun(settings, root, launcher, opened=opened)

    def home(self, name: str) -> ProgramRun:
        """Return what takes the calls about a logged model or version: the journal that creates it, if it is open."""
        return self.homes.get(name) or self.calls()

    # -- what has become of it ---------------------------------------------------------------------------------------

    def call(self, run: ProgramRun, call: Call) -> None:
        """Write a call down."""
        run.journal.append(StoreCall(encode_call(call)))

    def promised(self, run: ProgramRun, provisional: str, kind: str) -> str:
        """Return the server's id of what a call in the journal of `run` creates, or the provisional one."""
        return self._promised(run, provisional, kind, lambda: run.journal.state().made.get(provisional) or None)

    def registered(self, run: ProgramRun, provisional: str) -> str | None:
        """Return the number of a version that a call in the journal of `run` creates; None if it has none yet.

        Like our callbacks, this waits until the version is registered, but not for a store that does not answer.

        Raises:
            MlflowException: The registry has refused it.
        """
        seconds = self.settings.delivery.wait_at_end
        number = self.wait_for(lambda: run.journal.state().made.get(provisional), run, seconds)
        if number == "":
            raise MlflowException("the registry has refused the version", INVALID_PARAMETER_VALUE)
        if number is None:
            self.ids.promise(provisional, Provisional("version", run.run_key))
            number = run.journal.state().made.get(provisional)
        return number

    def wait_for(self, known: Callable[[], T | None], run: ProgramRun, seconds: float) -> T | None:
        """Return what becomes known within some seconds, as long as the store answers."""
        deadline = time.monotonic() + seconds
        while (found := known()) is None:
            now = time.monotonic()
            if run.journal.offline or now < self._away_until:
                return None
            state = run.journal.state()
            if state.last_error or (now > deadline and state.run_id is None):
                self._away_until = now + _AWAY_SECONDS
            if state.last_error or now > deadline:
                return None
            run.journal.ensure_delivery()
            time.sleep(_POLL_SECONDS)
        self._away_until = 0.0
        return found

    def settle(self) -> None:
        """Wait until the store has what this process has written, so that it can be asked about it.

        The wait ends after some seconds, and at once where the store does not answer.
        """
        with self._lock:
            runs = {run.run_key: run for run in [*self._runs.values(), *filter(None, [self._calls])]}
        deadline = time.monotonic() + _SETTLE_SECONDS
        for run in runs.values():
            if not run.delivered:
                seconds = deadline - time.monotonic()
                complete = self.wait_for(lambda run=run: run.journal.report().complete or None, run, seconds)  # type: ignore[misc]
                run.delivered = run.ended and complete is True

    def folders_of(self, run_id: str) -> list[RunFolder]:
        """Return the folders of the journal root that hold what was written to a run and is not wholly delivered."""
        root, found = self.root, {}
        if (run := self.own_run(run_id)) is not None:
            found[run.run_key] = root.run(run.run_key)
        for folder in root.runs():
            if folder.run_key == run_id or self._belongs(folder, run_id):
                found[folder.run_key] = folder
        return [folder for folder in found.values() if folder.path.exists()]

    def _belongs(self, folder: RunFolder, run_id: str) -> bool:
        state = folder.read_state()
        if state is not None and state.run_id is not None:
            return state.run_id == run_id
        return any(header.run_id == run_id for header in _headers(folder))

    def server_id(self, run_id: str) -> str | None:
        """Return the server's id of a run; None if it is not known yet."""
        if (run := self.own_run(run_id)) is not None and run_id == run.run_key:
            return run.journal.known_run_id()
        try:
            return self.ids.real(run_id)
        except NotKnownYetError:
            return None


def _headers(folder: RunFolder) -> list[SessionOpened]:
    from tracking_callbacks._journal.pending import read_opened

    return [header for journal in folder.journals() if (header := read_opened(journal)) is not None]


def _program() -> str:
    return mask_text(Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "an interactive session")


_all: weakref.WeakSet[Journals] = weakref.WeakSet()
_by_place: dict[tuple[str, str | None], Journals] = {}
_by_place_lock = threading.Lock()


def journals_for(tracking_uri: str, registry_uri: str | None = None) -> Journals:
    """Return what this process writes for a store; the same object for all of MLflow's clients.

    Args:
        tracking_uri: The real tracking store.
        registry_uri: The real model registry. None means the tracking store's, unless ``MLFLOW_REGISTRY_URI`` says
            otherwise.
    """
    with _by_place_lock:
        if registry_uri in (tracking_uri, real_uri(os.environ.get(REGISTRY_URI_VARIABLE, ""))):
            registry_uri = None
        key = tracking_uri, registry_uri
        return _by_place.setdefault(key, Journals(tracking_uri, registry_uri))


def _begin_in_fork() -> None:
    for journals in list(_all):
        journals.begin_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_fork)
