"""Starts the delivery process and keeps it running, from the training process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from tracking_callbacks.owner import current_owner
from tracking_callbacks.priority import lower
from tracking_callbacks.records import Store
from tracking_callbacks.settings import TRACKING_URI_VARIABLE, Settings

__all__ = ["DELIVERY_VARIABLE", "DeliveryLauncher", "launcher_for", "leave_all_running", "start_sync"]

logger = logging.getLogger("tracking_callbacks")

DELIVERY_VARIABLE = "TRACKING_CALLBACKS_DELIVERY"
_ENTRY = Path(__file__).parent / "delivery" / "__main__.py"
_LOG_LIMIT = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class DeliveryLauncher:
    """One delivery process for one training process, journal root and store."""

    def __init__(self, settings: Settings, journal_root: Path) -> None:
        self._settings = settings
        self._root = journal_root
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _FIRST_PAUSE
        self._warned = False

    def ensure_running(self) -> None:
        """Start the delivery process, unless it runs; one that keeps failing is restarted less and less often."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            now = time.monotonic()
            if self._process is not None and self._process.returncode != 0:
                lived = now - self._started
                self._pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(self._pause * 2, _LONGEST_PAUSE)
                if lived < self._pause:
                    return
                self._warn(f"delivery process ended with exit code {self._process.returncode}; starting another")
            self._started = now
            self._start()

    def leave_running(self) -> None:
        """Let the delivery process outlive this one without a ResourceWarning."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.returncode = 0  # what Popen.__del__ asks before it warns

    def _start(self) -> None:
        if not sys.executable:
            self._warn("no delivery: this Python names no executable; run 'tracking-callbacks sync' later")
            return
        told = {
            "store": self._settings.shown_uri,
            "owner": msgspec.to_builtins(current_owner()),
            "grace": self._settings.delivery_grace,
        }
        try:
            self._process = _spawn(self._root, self._settings.tracking_uri, self._settings.working_folder, told)
        except OSError as error:
            self._warn(f"the delivery process cannot start ({error}); the journal in {self._root} is kept")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s; its log is %s", message, self._root / "delivery.log")


def start_sync(root: Path, store: Store, uri: str, patience: float) -> subprocess.Popen[bytes]:
    """Start a process that delivers what nobody writes to any more, and ends when nothing is left or moves.

    Args:
        root: The journal root.
        store: The store that the runs were made for; runs of others are left alone.
        uri: The store to deliver to, with its credentials.
        patience: Seconds without progress after which the process gives up.
    """
    told = {"store": store.uri, "owner": msgspec.to_builtins(current_owner()), "patience": patience}
    return _spawn(root, uri, Path(store.working_folder), told)


def _spawn(root: Path, uri: str, working_folder: Path, told: dict[str, object]) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment.pop("MLFLOW_RUN_ID", None)
    environment |= store_environment(uri) | {DELIVERY_VARIABLE: json.dumps(told)}
    log = root / "delivery.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        os.replace(log, log.with_suffix(".log.1"))
    with open(log, "ab") as output:
        # -P: a user's mlflow.py in the working folder must not shadow MLflow. No preexec_fn: it forbids vfork and
        # cost 154 ms from a trainer of 3.7 GB.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_ENTRY), str(root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=working_folder if working_folder.is_dir() else root,
            env=environment,
            start_new_session=True,
        )
    lower(process.pid)
    return process


def store_environment(uri: str) -> dict[str, str]:
    """Return the environment variables that let MLflow reach the store at `uri`.

    Credentials travel through the environment, for a command line is open to every user; those of a server go apart
    from its URI, which MLflow prints.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return {TRACKING_URI_VARIABLE: uri}
    return {
        TRACKING_URI_VARIABLE: urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password or ""),
    }


_launchers: dict[tuple[Path, str, int], DeliveryLauncher] = {}
_registry_lock = threading.Lock()


def launcher_for(settings: Settings, journal_root: Path) -> DeliveryLauncher:
    """Return the launcher that all runs of this process with this root and store share."""
    with _registry_lock:
        key = (journal_root, settings.tracking_uri, os.getpid())
        return _launchers.setdefault(key, DeliveryLauncher(settings, journal_root))


def leave_all_running() -> None:
    """Let every delivery process of this process outlive it."""
    for launcher in list(_launchers.values()):
        launcher.leave_running()
