"""The log of a training run: what passes through `logging`, in a file that delivery uploads as it grows.

This is not done with a handler. A handler on the root logger would make the user's later ``logging.basicConfig()`` do
nothing, would silence Python's last-resort handler, and would miss loggers that do not propagate, such as
transformers'. Instead, the log record factory is wrapped. It sees every record that its logger's level lets pass,
changes none of them, and touches no handler and no level.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["MAX_LOG_BYTES", "TrainLog"]

MAX_LOG_BYTES = 4_000_000
_NAME = "train.log"
_NAME_BEFORE = "train.1.log"
_PROBE = "tracking_callbacks.probe"
# Loggers that say nothing about training: ipykernel 7 logs each message to a notebook's kernel, with the code of the
# cell, and MLflow warns of the type hints of its own classes when it is imported.
_NOISE = ("IPKernelApp", "traitlets", "mlflow.types.type_hints")
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


class TrainLog:
    """The log of one run; secrets are masked before a line is written.

    A full file is renamed to ``train.1.log``, replacing the previous one, and a new file is started, so the last 1 to 2
    times `MAX_LOG_BYTES` are kept. The file is created with its first line. Forked children write nothing.

    Args:
        folder: Folder for the files; it may not exist yet.
        run_key: Key of the run, under which the guard reports failures.
    """

    def __init__(self, folder: Path, *, run_key: str | None = None) -> None:
        self.run_key = run_key
        self._folder = folder
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._busy = threading.local()
        self._fd: int | None = None
        self._size = 0
        self._second, self._stamp = -1, ""
        self._closed = False
        _factory.show_to(self)

    def take(self, record: logging.LogRecord) -> None:
        """Write one record; never raises, and ignores what is logged by the writing itself."""
        if os.getpid() != self._pid or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._write(record)
        finally:
            self._busy.now = False

    @never_in_the_way
    def _write(self, record: logging.LogRecord) -> None:
        line = mask_text(self._text(record)) + "\n"
        content = line.encode(errors="replace")[:MAX_LOG_BYTES]
        # On a full disk the line is lost. No warning here, because the journal itself warns about the disk once.
        with self._lock, contextlib.suppress(OSError):
            if self._closed:
                return
            if self._fd is not None and self._size + len(content) > MAX_LOG_BYTES:
                os.close(self._fd)
                self._fd = None
                os.replace(self._folder / _NAME, self._folder / _NAME_BEFORE)
            if self._fd is None:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._fd, self._size = os.open(self._folder / _NAME, flags, 0o600), 0
            self._size += os.write(self._fd, content)

    def _text(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            # A copy, because the formatter stores its text of the exception in the record that the user's handlers get.
            return _FORMAT.format(copy.copy(record))
        # The same as the formatter, in a fifth of its time.
        second = int(record.created)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._stamp},{int(record.msecs):03d} {record.levelname} {record.name}: {record.getMessage()}"

    def close(self) -> None:
        """Stop logging and close the file."""
        _factory.forget(self)
        if os.getpid() == self._pid:
            with self._lock:
                self._closed = True
                if self._fd is not None:
                    os.close(self._fd)
                    self._fd = None


# -- the factory -----------------------------------------------------------------------------------------------------


class _RecordFactory:
    """Creates log records with the factory that it wraps, and passes them to the logs."""

    def __init__(self) -> None:
        self._logs: tuple[TrainLog, ...] = ()
        self._wrapped: Any = logging.LogRecord
        self._lock = threading.Lock()
        self._probed = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._wrapped(*args, **kwargs)
        if record.name == _PROBE:
            self._probed.reached = True
        # makeLogRecord asks for a record without a name, to fill in what another process has logged.
        elif record.name and not record.name.startswith(_NOISE):
            for log in self._logs:
                log.take(record)
        return record

    def show_to(self, log: TrainLog) -> None:
        with self._lock:
            self._logs += (log,)
            current = logging.getLogRecordFactory()
            if not self._is_reached_by(current):
                self._wrapped = current
                logging.setLogRecordFactory(self)

    def forget(self, log: TrainLog) -> None:
        with self._lock:
            self._logs = tuple(other for other in self._logs if other is not log)
            if not self._logs and logging.getLogRecordFactory() is self:
                logging.setLogRecordFactory(self._wrapped)  # a user's factory that wraps ours stays

    def _is_reached_by(self, factory: Any) -> bool:
        self._probed.reached = False
        factory(_PROBE, logging.DEBUG, "", 0, "", (), None)
        return bool(self._probed.reached)


_factory = _RecordFactory()
