"""The heavy process itself."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tracking_callbacks._delivery.failures import DeliveryError
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
from tracking_callbacks._delivery.log import log_to_stderr
from tracking_callbacks._delivery.progress import on_sending
from tracking_callbacks._delivery.stores.choice import store_for
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE
from tracking_callbacks._journal.layout import RunFolder

__all__ = ["main"]

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5


def main() -> int:
    """Do the tasks that the delivery process writes to stdin; return 0."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # as the delivery process does, which ends this one
    answers = _Answers(os.dup(1))
    os.dup2(2, 1)  # what a library prints must not get in among the answers
    log_to_stderr()
    on_sending(answers.count)
    work = _Work()
    for task in _tasks():
        answers.write(work.done(task))
    return 0


def _tasks() -> Iterator[Task]:
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        for line in sys.stdin.buffer:
            waiting.put(line)
        os._exit(0)  # the delivery process has ended us or has died; another one does over what is half done

    threading.Thread(target=receive, name="tasks", daemon=True).start()
    while True:
        yield msgspec.json.decode(waiting.get(), type=Task)


class _Answers:
    """What goes back to the delivery process."""

    def __init__(self, descriptor: int) -> None:
        self._output = os.fdopen(descriptor, "wb")
        self._lock = threading.Lock()
        self._sent = 0
        self._reported = time.monotonic()

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        with self._lock:
            self._output.write(msgspec.json.encode(answer) + b"\n")
            self._output.flush()

    def count(self, size: int) -> None:
        """Count bytes that a library sends over HTTP, and report them now and then."""
        self._sent += size
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            size, self._sent, self._reported = self._sent, 0, now
            self.write(Sent(size))


class _Work:
    def __init__(self) -> None:
        uris = os.environ[TRACKING_URI_VARIABLE], os.environ.get(REGISTRY_URI_VARIABLE)
        self._client = MlflowStore(*uris)  # imports MLflow at its first call
        self._store = store_for(*uris, self._client)

    def done(self, task: Task) -> Done | Failed:
        """Return what came of a task."""
        try:
            match task:
                case UploadFile(run_id=run_id, path=path, artifact_path=place):
                    self._client.log_artifact(run_id, Path(path), place)
                case UploadFolder(run_id=run_id, folder=folder, artifact_path=place):
                    self._client.log_artifacts(run_id, Path(folder), place)
                case UploadModel(model_id=model_id, folder=folder):
                    self._client.log_model_artifacts(model_id, Path(folder))
                case Draw(run_id=run_id, record=record, snapshot=snapshot, run_folder=folder):
                    from tracking_callbacks._delivery.pictures.drawing import draw

                    source = None if snapshot is None else Path(snapshot)
                    return Done(
                        [str(path) for path in draw(record, source, RunFolder(Path(folder)), self._store, run_id)]
                    )
        except DeliveryError as error:
            return Failed.because(error)
        except Exception as error:  # the only broad except in this process, which goes on with the next task
            logger.exception("unexpected error in %s", type(task).__name__)
            what = f"{type(error).__name__}: {error}"
            if isinstance(task, Draw):
                return Failed("Refused", f"cannot draw {task.record.kind}: {what}")
            return Failed("Transient", what, may_have_committed=True)
        return Done()
