"""Records what a run holds automatically: starts with the run, continues in threads, and finishes by the run's end."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tracking_callbacks._contents.config import config_files
from tracking_callbacks._contents.entry_point import entry_script
from tracking_callbacks._contents.environment import environment_files
from tracking_callbacks._contents.git import GitSnapshot, GitState, find_repository, holds_secrets
from tracking_callbacks._contents.python_log import TrainLog
from tracking_callbacks._journal.records import Automatic, SessionOpened
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.settings import Settings

if TYPE_CHECKING:
    from tracking_callbacks._contents.output_log import OutputLog
    from tracking_callbacks._writing.session import RunJournal

__all__ = ["ContentsRecorder"]

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0
# Head start of the training over our threads, because threads with many short I/O calls, or the start of a process,
# make the training thread wait for the GIL. git's is short, because the user may go on editing.
_HEAD_START_SECONDS = 0.5
_GIT_HEAD_START_SECONDS = 0.05
_MAX_SCRIPT_BYTES = 1_000_000


class ContentsRecorder:
    """Records the pieces of one run.

    The training thread reads the settings files. One extra thread runs git, another reads the environment, and each
    writes to the journal. A piece that is not finished one second after the run's end is left out. A piece that fails
    is logged once and left out.

    Args:
        settings: Which pieces to record.
        journal: The journal to write to.
        opened: The run's session; nothing is recorded for a session that only joins a run.

    Attributes:
        run_key: Key of the run.
    """

    def __init__(self, settings: Settings, journal: RunJournal, opened: SessionOpened) -> None:
        self.run_key = opened.run_key
        self._settings = settings
        self._journal = journal
        self._own = opened.intent == "own" and not journal.inert
        self._place = _resumed_place(opened.timestamp) if opened.resumed else ""
        self._known_tags = frozenset(opened.tags)
        self._lock = threading.Lock()
        self._ended = False
        self._log: TrainLog | None = None
        self._output: OutputLog | None = None
        self._git: GitSnapshot | None = None
        self._threads: list[threading.Thread] = []
        self._wanted = threading.Event()
        if self._own:
            self._begin()

    def settle(self) -> None:
        """Wait until the pieces are in the journal, for at most a second."""
        if self._journal.inert:
            return
        self._wanted.set()
        deadline = time.monotonic() + _SETTLE_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def end(self) -> None:
        """Finish; called before the run's journal is sealed."""
        if self._journal.inert:  # in a forked child, a lock that a thread held at the fork is never released
            return
        self.settle()
        with self._lock:
            self._ended = True
        if self._git is not None and any(thread.is_alive() for thread in self._threads):
            self._git.abandon()
        self._stop_log()
        self._stop_output()

    def reopen(self) -> None:
        """Continue the log of a run that is reopened in this process; the other pieces are not recorded again."""
        if self._own and not self._journal.inert:
            self._place = _resumed_place(time.time_ns() // 1_000_000)
            self._start_log()
            self._start_output()

    @never_in_the_way
    def add_error(self, error: BaseException) -> None:
        """Record the traceback of an exception as output: the run ends before Python prints it, if it does."""
        if self._output is not None:
            self._output.add_error(error)

    # -- in the training thread --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._start_log()
        self._start_output()
        self._record_config()
        if self._settings.record.system_metrics and importlib.util.find_spec("psutil") is None:
            logger.warning("system metrics are off: psutil is not installed (pip install 'tracking-callbacks[system]')")
        if self._settings.record.source:
            self._start_thread(self._record_source)
        if self._settings.record.environment:
            self._start_thread(self._record_environment)

    @never_in_the_way
    def _start_log(self) -> None:
        if self._settings.record.python_logging:
            self._log = TrainLog(self._journal.live_folder / "logs" / self._place, run_key=self.run_key)

    @never_in_the_way
    def _stop_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    @never_in_the_way
    def _start_output(self) -> None:
        if not self._settings.record.output:
            return
        from tracking_callbacks._contents.output_log import OutputLog  # few runs have it

        folder, errors = self._journal.live_folder / "logs" / self._place, self._journal.root.path / "delivery.log"
        try:
            self._output = OutputLog(folder, errors=errors)
        except OSError as error:
            logger.warning("the output is not recorded: %s", error)

    @never_in_the_way
    def _stop_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None

    @never_in_the_way
    def _record_config(self) -> None:
        if self._settings.record.config:
            self._record("config", config_files(self._settings))

    def _start_thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="tracking-callbacks context", daemon=True)
        thread.start()
        self._threads.append(thread)

    # -- in threads --------------------------------------------------------------------------------------------------

    @never_in_the_way
    def _record_environment(self) -> None:
        self._wanted.wait(_HEAD_START_SECONDS)
        self._record("environment", environment_files())

    @never_in_the_way
    def _record_source(self) -> None:
        self._wanted.wait(_GIT_HEAD_START_SECONDS)
        state = self._git_state()
        tags = {} if self._place else {key: text for key, text in state.tags.items() if key not in self._known_tags}
        files = {"diff.patch": state.patch, "untracked.txt": "".join(f"{path}\n" for path in state.untracked)}
        self._record("source", {name: text for name, text in files.items() if text} | _script(), tags)

    def _git_state(self) -> GitState:
        script = entry_script()
        of_script = find_repository(script.parent) if script is not None else None
        top = of_script or find_repository(self._settings.working_folder)
        if top is None:
            return GitState()
        try:
            self._git = GitSnapshot(top)
        except OSError as error:
            logger.info("cannot start git, so its state is not recorded: %s", error)
            return GitState()
        return self._git.finish()

    # -- both --------------------------------------------------------------------------------------------------------

    def _record(self, piece: str, files: Mapping[str, str], tags: Mapping[str, str] | None = None) -> None:
        """Write files (by path within the folder `piece`) and tags to the journal, unless the run has ended."""

        def write(folder: Path) -> None:
            for place, content in files.items():
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8", errors="replace")

        artifact_path = f"{piece}/{self._place}" if self._place else piece
        with self._lock:
            if self._ended:
                return
            if tags:
                self._journal.append(Automatic(tags=dict(tags)))
            if files:
                self._journal.stage("", write, lambda staged: Automatic(staged=staged, artifact_path=artifact_path))


def _resumed_place(timestamp: int) -> str:
    return time.strftime("resumed-%Y%m%dT%H%M%SZ", time.gmtime(timestamp / 1000))


def _script() -> dict[str, str]:
    path = entry_script()
    if path is None or holds_secrets(path.name):
        return {}
    try:
        if path.stat().st_size > _MAX_SCRIPT_BYTES:
            return {}
        return {path.name: mask_text(path.read_text(encoding="utf-8"), code=True)}
    except (OSError, UnicodeDecodeError):  # deleted, unreadable, or binary
        return {}
