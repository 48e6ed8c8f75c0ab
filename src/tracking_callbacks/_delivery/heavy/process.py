"""The delivery process's side of the heavy process: starts it for a task, and ends it when there is none."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tracking_callbacks._delivery.failures import Refused, Transient
from tracking_callbacks._delivery.heavy.tasks import (
    Answer,
    Done,
    Draw,
    Failed,
    Sent,
    Task,
    UploadFile,
    UploadFolder,
    UploadModel,
)
from tracking_callbacks._delivery.stores.direct_files import DirectFiles
from tracking_callbacks._journal.records import Drawing

__all__ = ["HeavyProcess"]

logger = logging.getLogger(__name__)

_ENTRY = Path(__file__).with_name("__main__.py")
_LINGER_SECONDS = 5.0  # so that the pictures at a run's end share one import of matplotlib
_MOST_DEATHS = 3  # in a row: a picture that it cannot draw without dying is refused, an upload is tried again


class HeavyProcess(DirectFiles):
    """One process at a time; calls from several threads wait for one another.

    Args:
        sent: Called with the bytes that an upload has sent since the last call.
        root: The journal root, which tells such processes apart in a list of them; None where none is started.
    """

    def __init__(self, sent: Callable[[int], None], root: Path | None = None) -> None:
        self._sent = sent
        self._command = [sys.executable, "-P", str(_ENTRY), *([] if root is None else [str(root)])]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0.0
        self._outdated = False
        self._deaths = 0

    def renew(self) -> None:
        self._outdated = True

    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        self._do(UploadFile(run_id, str(path), artifact_path))

    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        self._do(UploadFolder(run_id, str(folder), artifact_path))

    def log_model_artifacts(self, model_id: str, folder: Path) -> None:
        self._do(UploadModel(model_id, str(folder)))

    def draw(self, run_id: str, record: Drawing, snapshot: Path | None, run_folder: Path) -> list[Path]:
        """Draw the pictures that `record` asks for, and return their files.

        Raises:
            Refused: They cannot be drawn.
            DeliveryError: The store did not give the points of earlier sessions this time.
        """
        place = None if snapshot is None else str(snapshot)
        return [Path(file) for file in self._do(Draw(run_id, record, place, str(run_folder))).files]

    def end_if_idle(self) -> None:
        """End the process if it has had nothing to do for a while."""
        if self._process is not None and time.monotonic() - self._used > _LINGER_SECONDS:
            self.end()

    def end(self) -> None:
        """End the process, if it runs; another task starts another one."""
        with self._lock:
            self._end()

    def _do(self, task: Task) -> Done:
        with self._lock:
            if self._outdated:
                self._outdated = False
                self._end()
            answer = self._ask(task)
            self._used = time.monotonic()
        if answer is None:
            self._deaths += 1
            message = f"the process that does this ended before it was done ({type(task).__name__})"
            if isinstance(task, Draw) and self._deaths >= _MOST_DEATHS:
                self._deaths = 0
                raise Refused(message)
            raise Transient(message, may_have_committed=True)
        self._deaths = 0
        if isinstance(answer, Failed):
            raise answer.error()
        return answer

    def _ask(self, task: Task) -> Done | Failed | None:
        """Return the answer to `task`; None means that the process ended without one."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                answer: Answer = msgspec.json.decode(line, type=Answer)
                if not isinstance(answer, Sent):
                    return answer
                self._sent(answer.size)
        except OSError as error:
            logger.warning("the heavy process cannot be reached: %s", error)
        self._end()
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            except OSError as error:
                raise Transient(f"cannot start a process for pictures and uploads: {error}") from error
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its stdin, at which it ends
            self._process = None
