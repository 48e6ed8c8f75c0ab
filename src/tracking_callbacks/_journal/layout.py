"""The layout of the journal root: one folder per run, and what remains of a run after its delivery.

::

    <journal root>/
      .gitignore
      delivery.log               the log of the delivery processes
      .lock                      held briefly while a session opens or a delivered run is removed
      .lead-<store>.lock         held by the process that delivers to a local store for all training processes
      .scratch-<process>-…       files of a training process that only it needs
      delivered/<run key>.json   the final state of delivered runs
      .ids/<provisional id>      what the MLflow plugin has given an id to before the server did, see `provisional`
      rejected/<run key>/…       files that the store refused and that may exist nowhere else; nothing deletes them
      <run key>/
        <session>.journal        append-only log, one per session
        <session>.last           space reserved for its last record, in case the disk is full by then
        staged/…                 snapshots of files and models
        live/<session>/…         files that grow while the session lasts, under their artifact paths
        uploading/…              copies of the live files that are being uploaded
        state.json               what delivery knows and has done
        drain.lock               held by the process that delivers the run
        takeover.lock            held by a process that asks that one to leave the run to it
        shared                   the run is left to the process that delivers for all
        rejected.jsonl           records that were refused, with the reason
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import msgspec

from tracking_callbacks._journal.confined import OutsideError, delete, inside, is_key, open_own, read_own
from tracking_callbacks._journal.owner import Owner, current_owner, started_at
from tracking_callbacks._journal.private import check_private
from tracking_callbacks._journal.records import Status, StoreAddress

__all__ = [
    "JournalRoot",
    "LoggedModel",
    "PromotionState",
    "RunFolder",
    "RunState",
    "SessionState",
    "is_held",
    "session_name",
    "write_atomically",
]

_JOURNAL_SUFFIX = ".journal"
_JOURNAL = re.compile(r"[0-9]+\.journal")
_DELIVERED = "delivered"
_SCRATCH = ".scratch-"
_REJECTED = "rejected"
# What this package writes in a run's folder under a fixed name: files, then folders.
_RUN_FILES = ("state.json", "rejected.jsonl", "drain.lock", "takeover.lock", "shared")
_RUN_FOLDERS = ("uploading", "drawn")


class SessionState(msgspec.Struct):
    """What delivery has done for one journal.

    Attributes:
        points: Offset up to which metrics, params and tags are acknowledged by the store.
        files: The same for artifacts, datasets and models.
        delivered: Number of entries acknowledged by the store.
        rejected: Number of entries permanently refused by the store.
        damaged: Number of stretches that could not be read.
        ended: Status (None if the session does not decide it) and time (ms since the epoch) of its end record, once
            that has been read.
        closed: The session's end (or its owner's death) is delivered.
        withdrawn: Number of checkpoints that were dropped to make room for later ones.
        surplus_params: Number of params among the rejected that are above the store's limit.
    """

    points: int = 0
    files: int = 0
    delivered: int = 0
    rejected: int = 0
    damaged: int = 0
    ended: tuple[Status | None, int] | None = None
    closed: bool = False
    withdrawn: int = 0
    surplus_params: int = 0


class PromotionState(msgspec.Struct):
    """What delivery knows of the comparison of one version with the holder of an alias.

    Attributes:
        begun: The other fields are known.
        decided: The versions whose comparison was over when this one began.
        over: The version that held the alias at that time.
        outcome: What came of it; empty until it is over.
    """

    begun: bool = False
    decided: list[str] = []
    over: str | None = None
    outcome: str = ""


class LoggedModel(msgspec.Struct, frozen=True):
    """A model as it was logged.

    Attributes:
        flavors: Names of its flavors.
        registered: Name of the registered model. None means that it is not registered.
        model_id: The store's id of the logged model. None means that the store has no logged models.
        deflated: Its deflated Sharpe ratio over the registered versions, in words; empty without one.
    """

    flavors: list[str]
    registered: str | None = None
    model_id: str | None = None
    deflated: str = ""


class RunState(msgspec.Struct):
    """What delivery knows about a run. The training process reads it; only delivery writes it.

    Attributes:
        attempts: Requests whose outcome may be unknown, with their times: creations (`_delivery.once.Once`), tags.
        last_error: What currently stops delivery; empty when nothing does.
        blocked: The error will not go away by itself: wrong credentials, a deleted run.
        complete: Everything is delivered and the status is set.
        versions: The version that the registry gave to each model, by the key of its record.
        promotions: The comparisons of those versions, by the same key.
        models: The models that were logged, by the same key.
        pictures: Paths of the latest picture of each name among the run's artifacts, by name.
        described: Time of the last description (ms since the epoch); 0 if there is none.
        alerted: The alerts that were sent, or could not be: condition and channel.
        made: The server's ids of what calls of the plugin have created, by their provisional ids; empty if refused.
        run_name: The store's name of the run, known once its end is delivered.
        store: Tracking URI of that store, without credentials.
    """

    run_id: str | None = None
    experiment_id: str | None = None
    attempts: dict[str, int] = {}
    sessions: dict[str, SessionState] = {}
    last_error: str = ""
    blocked: bool = False
    complete: bool = False
    versions: dict[str, str] = {}
    promotions: dict[str, PromotionState] = {}
    models: dict[str, LoggedModel] = {}
    pictures: dict[str, str] = {}
    described: int = 0
    alerted: list[str] = []
    made: dict[str, str] = {}
    run_name: str = ""
    store: str = ""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder under the journal root."""

    path: Path

    @property
    def run_key(self) -> str:
        """The run's key, which is also the folder's name."""
        return self.path.name

    @property
    def staged(self) -> Path:
        """Folder of file snapshots."""
        return self.path / "staged"

    @property
    def drawn(self) -> Path:
        """Where pictures lie between being drawn and being uploaded."""
        return self.path / "drawn"

    def live(self, session: str) -> Path:
        """Return the folder of the files that grow while a session lasts."""
        return self.path / "live" / session

    @property
    def drain_lock(self) -> Path:
        """Lock file of the process that delivers the run."""
        return self.path / "drain.lock"

    @property
    def takeover_lock(self) -> Path:
        """Lock file of a process that asks another to leave the run to it."""
        return self.path / "takeover.lock"

    @property
    def shared(self) -> bool:
        """Whether the owner's delivery process leaves the run to the one that leads."""
        return (self.path / "shared").exists()

    def share(self) -> None:
        """Leave the run to the delivery process that leads."""
        if not self.shared:
            with contextlib.suppress(OSError):  # a full disk: the owner's process delivers it once that one has ended
                os.close(open_own(self.path / "shared", os.O_WRONLY | os.O_CREAT))

    @property
    def rejected(self) -> Path:
        """Records that the store refused."""
        return self.path / "rejected.jsonl"

    def journal(self, session: int) -> Path:
        """Return the journal of one session."""
        return self.path / f"{session:020d}{_JOURNAL_SUFFIX}"

    def journals(self) -> list[Path]:
        """Return the journals of all sessions, oldest first; links and special files are left out."""
        try:
            entries = [entry for entry in os.scandir(self.path) if entry.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(Path(entry) for entry in entries if _JOURNAL.fullmatch(entry.name))

    def staged_path(self, staged: str) -> Path:
        """Return where a snapshot lies whose path was read from a journal.

        Raises:
            OutsideError: It is neither ``staged/<holder>`` nor ``staged/<holder>/<name>``, or passes through a link.
        """
        path = inside(self.path, staged)
        if len(path.relative_to(self.path).parts) not in (2, 3) or path.parts[len(self.path.parts)] != "staged":
            raise OutsideError(f"the path {staged!r} names no snapshot")
        return path

    def remove_planted(self) -> None:
        """Delete what stands, as a link or as another kind of file, where delivery is going to write."""
        for names, kind in ((_RUN_FILES, stat.S_ISREG), (_RUN_FOLDERS, stat.S_ISDIR)):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    if not kind((self.path / name).lstat().st_mode):
                        delete(self.path / name, within=self.path)

    def read_state(self) -> RunState | None:
        """Return the delivery state, or None if there is none (yet)."""
        return _read_state(self.path / "state.json")

    def state_written(self) -> int:
        """Return when the delivery state was last written, in nanoseconds since the epoch; 0 means never."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "state.json").stat().st_mtime_ns
        return 0

    def touch_state(self) -> None:
        """Show that delivery gets on, although there is nothing new in its state."""
        with contextlib.suppress(OSError):
            os.utime(self.path / "state.json")

    def write_state(self, state: RunState) -> None:
        """Replace the delivery state atomically."""
        write_atomically(self.path / "state.json", msgspec.json.encode(state))


@dataclass(frozen=True, slots=True)
class JournalRoot:
    """The folder that holds all runs' folders."""

    path: Path

    def prepare(self) -> None:
        """Create the root, accessible to its user only and ignored by git.

        Raises:
            OSError: The root cannot be created or written, belongs to another user or is writable by others.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check_private()
        ignore = self.path / ".gitignore"
        if not ignore.exists():
            write_atomically(ignore, b"*\n")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable", str(self.path))

    def check_private(self) -> None:
        """Check that no other user can have changed the root; a root that does not exist passes.

        Raises:
            PermissionError: The root or a run's folder belongs to another user, is writable by others, or is a link.
        """
        if not self.path.exists():
            return
        check_private(self.path)
        for name in (_DELIVERED, _REJECTED, ".lock", ".gitignore", "delivery.log"):
            if (self.path / name).is_symlink():
                raise PermissionError(1, f"{name} in it is a symbolic link", str(self.path))
        for folder in self.runs():
            try:
                check_private(folder.path)
            except FileNotFoundError:  # delivery has removed it just now
                continue
            except PermissionError:
                if folder.journals():  # else it is no run's
                    raise

    def run(self, run_key: str) -> RunFolder:
        """Return the folder of the run with this key, whether it exists or not.

        Raises:
            OutsideError: The key cannot be the name of a run's folder.
        """
        if not is_key(run_key):
            raise OutsideError(f"{run_key!r} is not a run key")
        return RunFolder(self.path / run_key)

    def scratch(self) -> Path:
        """Make a folder for files that only the calling process needs; `prune` removes it if the process is killed."""
        owner = current_owner()
        prefix = f"{_SCRATCH}{_machine(owner)}-{owner.pid}-{owner.start_ticks}-"
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))
        except OSError:  # the disk is full
            return Path(tempfile.mkdtemp(prefix="tracking_callbacks-"))

    def lead_lock(self, store: StoreAddress) -> Path:
        """Return the lock file of the process that delivers to a store for all training processes of this machine."""
        return self.path / f".lead-{_machine(current_owner())}-{crc32(msgspec.json.encode(store)):08x}.lock"

    @property
    def ids(self) -> Path:
        """Folder of the provisional ids, see `provisional`; without the MLflow plugin there is none."""
        return self.path / ".ids"

    def written(self) -> int:
        """Return when a folder was last made in the root or removed, in nanoseconds since the epoch; 0 means never."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def runs(self) -> list[RunFolder]:
        """Return the folders of all runs that are not delivered yet."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        return [self.run(name) for name in names if is_key(name)]

    def rejected(self, run_key: str) -> Path:
        """Return the folder of the files of a run that were refused; nothing deletes it."""
        return self.path / _REJECTED / self.run(run_key).run_key

    def all_rejected(self) -> list[Path]:
        """Return the folders of the files that were refused, one per run."""
        try:
            return sorted(self.path / _REJECTED / entry.name for entry in os.scandir(self.path / _REJECTED))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def keep_rejected(self, path: Path, run_key: str) -> Path | None:
        """Move a file or folder of a run to the refused ones, and return its new path; None means it is gone.

        Raises:
            OSError: It cannot be moved.
        """
        kept = self.rejected(run_key) / path.name
        if path.exists():
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = 1
            while os.path.lexists(kept):
                kept = kept.with_name(f"{path.name}.{(number := number + 1)}")
            os.replace(path, kept)
        return kept if kept.exists() else None

    @contextlib.contextmanager
    def locked(self, timeout: float = 10.0) -> Iterator[None]:
        """Hold the root's lock, so that no session opens in a run folder that is being removed.

        Raises:
            TimeoutError: Another process has held it for `timeout` seconds.
        """
        from filelock import FileLock

        with FileLock(self.path / ".lock", timeout=timeout):
            yield

    def final_state(self, run_key: str) -> RunState | None:
        """Return the state of a delivered run, or None if the run is not known as delivered."""
        return _read_state(self.path / _DELIVERED / f"{run_key}.json")

    def delivered(self) -> list[tuple[str, RunState]]:
        """Return the keys and final states of the runs that were delivered from here, the last one first."""
        found = []
        for path in (self.path / _DELIVERED).glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if is_key(path.stem) and (state := self.final_state(path.stem)) is not None and state.run_id:
                    found.append((path.stat().st_mtime_ns, path.stem, state))
        return [(key, state) for _, key, state in sorted(found, key=lambda one: one[0], reverse=True)]

    def remove_delivered(self, folder: RunFolder, state: RunState) -> bool:
        """Remove a delivered run's folder but keep its final state; return False if a session has opened in it."""
        with self.locked():
            if any(session_name(journal) not in state.sessions for journal in folder.journals()):
                return False
            if any(session.damaged for session in state.sessions.values()):
                self._keep_unnamed(folder)
            kept = self._keep_final(folder.run_key, state)
            with contextlib.suppress(OSError):
                os.replace(folder.rejected, self.path / _DELIVERED / f"{folder.run_key}.rejected.jsonl")
            bin_ = self.path / f".removed-{folder.run_key}"
            delete(bin_, within=self.path)
            os.replace(folder.path, bin_)
            if not kept:  # the disk is full: removing the folder frees space
                delete(bin_, within=self.path)
                self._keep_final(folder.run_key, state)
        delete(bin_, within=self.path)
        return True

    def _keep_unnamed(self, folder: RunFolder) -> None:
        """Keep the snapshots that no delivered record names: a damaged record may have named them."""
        if folder.staged.is_dir() and not folder.staged.is_symlink():
            for holder in folder.staged.iterdir():
                self.keep_rejected(holder, folder.run_key)

    def _keep_final(self, run_key: str, state: RunState) -> bool:
        delivered = self.path / _DELIVERED
        try:
            delivered.mkdir(mode=0o700, exist_ok=True)
            write_atomically(delivered / f"{run_key}.json", msgspec.json.encode(state))
        except OSError:
            return False
        return True

    def prune(self, older_than: float) -> None:
        """Remove what delivered runs left behind before `older_than` (seconds since the epoch)."""
        for entry in (self.path / _DELIVERED).glob("*.json*"):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < older_than:
                    delete(entry, within=self.path)
        for entry in self.path.glob(".removed-*"):
            delete(entry, within=self.path)
        self.remove_scratch()

    def remove_scratch(self) -> None:
        """Remove the scratch folders of dead processes of this machine."""
        for entry in self.path.glob(f"{_SCRATCH}{_machine(current_owner())}-*"):
            pid, ticks = entry.name.removeprefix(_SCRATCH).split("-")[1:3]
            if started_at(int(pid)) != int(ticks):
                delete(entry, within=self.path)


def _machine(owner: Owner) -> str:
    """Return what tells apart processes of two machines, boots or containers with the same id, as part of a name."""
    return f"{crc32(f'{owner.boot_id} {owner.pid_namespace}'.encode()):08x}"


def is_held(lock: Path) -> bool:
    """Return whether a process holds this lock file."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to lock
        return False


def session_name(journal: Path) -> str:
    """Return the key of a journal in `RunState.sessions`."""
    return journal.name.removesuffix(_JOURNAL_SUFFIX)


def _read_state(path: Path) -> RunState | None:
    try:
        return msgspec.json.decode(read_own(path), type=RunState)
    except (OSError, msgspec.MsgspecError):
        return None


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file of ours, so that a reader sees either the old or the new content.

    Raises:
        OSError: It cannot be written.
    """
    owner = current_owner()  # two containers may have one folder and the same pids
    temporary = path.with_name(f".{path.name}.{_machine(owner)}-{owner.pid}-{threading.get_ident()}")
    try:
        delete(temporary, within=path.parent)
        with open(open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        delete(temporary, within=path.parent)
        raise
