"""Starts the delivery process from the training process, and keeps it running."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from tracking_callbacks._journal.handover import (
    DELIVERY_VARIABLE,
    REGISTRY_URI_VARIABLE,
    TRACKING_URI_VARIABLE,
    Assignment,
)
from tracking_callbacks._journal.owner import current_owner
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._journal.scheduling import lower_priority
from tracking_callbacks._values.credentials import credentials_in
from tracking_callbacks._values.secrets import mask_uri
from tracking_callbacks._values.store_uri import real_uri
from tracking_callbacks.settings import Settings

__all__ = ["DeliveryLauncher", "ask_store", "detach_all", "launcher_for", "start_sync"]

logger = logging.getLogger(__name__)

_ENTRY = Path(__file__).parents[1] / "_delivery" / "__main__.py"
_LOG_LIMIT = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class DeliveryLauncher:
    """One delivery process for one training process, journal root and store."""

    def __init__(self, settings: Settings, journal_root: Path) -> None:
        self._settings = settings
        self._root = journal_root
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _FIRST_PAUSE
        self._warned = False

    def ensure_running(self) -> None:
        """Start the delivery process if it is not running; if it keeps failing, restart it less and less often."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            now = time.monotonic()
            if self._process is not None and self._process.returncode != 0:
                lived = now - self._started
                if self._process is not self._failed:  # the pause grows once for each process, not for each look at it
                    self._failed = self._process
                    self._pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(self._pause * 2, _LONGEST_PAUSE)
                if lived < self._pause:
                    return
                self._warn(f"delivery process ended with exit code {self._process.returncode}; starting another")
            self._started = now
            self._start()

    def detach(self) -> None:
        """Let the delivery process outlive this process without a ResourceWarning."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.returncode = 0  # Popen.__del__ warns while this is None

    def _start(self) -> None:
        if not sys.executable:
            self._warn("runs are not delivered: sys.executable is empty; run 'tracking-callbacks sync' later")
            return
        import socket

        from tracking_callbacks._writing.renewal import hand_on_credentials

        settings, known = self._settings, self._credentials()
        assignment = Assignment(settings.store, current_owner(), grace=settings.delivery.grace)
        uris = settings.tracking_uri, settings.registry_uri
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(self._root, *uris, assignment, variables=known, stdin=theirs.fileno())
            except OSError as error:
                ours.close()
                self._warn(f"cannot start the delivery process ({error}); the journal in {self._root} is kept")
                return
        hand_on_credentials(ours, self._credentials, known)

    def _credentials(self) -> dict[str, str]:
        """Return the variables that the store's credentials come from, those in its URI included."""
        uri = self._settings.tracking_uri
        with contextlib.suppress(ValueError):  # malformed, and therefore another store's
            now = real_uri(os.environ.get(TRACKING_URI_VARIABLE, ""))
            uri = now if mask_uri(now) == self._settings.masked_uri else uri
        return credentials_in(os.environ) | store_environment(uri)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s; its log is %s", message, self._root / "delivery.log")


def start_sync(
    root: Path,
    store: StoreAddress,
    uri: str,
    registry_uri: str | None,
    stall_timeout: float,
    withheld: Collection[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that delivers the runs that no other process delivers.

    It ends when everything is delivered, or when nothing makes progress.

    Args:
        root: The journal root.
        store: The store that the runs were made for; runs for other stores are left alone.
        uri: URI of the store to deliver to, with its credentials.
        registry_uri: URI of the model registry, with its credentials. None means the store's own registry.
        stall_timeout: Seconds without progress after which the process gives up.
        withheld: Names of environment variables that the process does not get.
    """
    assignment = Assignment(store, current_owner(), stall_timeout=stall_timeout)
    return _spawn(root, uri, registry_uri, assignment, withheld=withheld)


def ask_store(
    settings: Settings, question: Literal["registry", "checkup"], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a process that asks the store, and return it with what it printed.

    Args:
        settings: Where the store and the registry are.
        question: The module of `_delivery` that asks: for the versions of registered models, or whether all is well.
        arguments: What it is given.
    """
    environment = os.environ | store_environment(settings.tracking_uri)
    if settings.registry_uri is not None:
        environment |= {REGISTRY_URI_VARIABLE: settings.registry_uri}
    command = [sys.executable, "-P", "-m", f"tracking_callbacks._delivery.{question}", *arguments]
    return subprocess.run(command, cwd=settings.working_folder, env=environment, capture_output=True, check=False)


def _spawn(
    root: Path,
    uri: str,
    registry_uri: str | None,
    assignment: Assignment,
    *,
    withheld: Collection[str] = (),
    variables: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    for name in ("MLFLOW_RUN_ID", REGISTRY_URI_VARIABLE, *withheld):
        environment.pop(name, None)
    environment |= store_environment(uri) | {DELIVERY_VARIABLE: assignment.encode()} | dict(variables or {})
    if registry_uri is not None:
        environment[REGISTRY_URI_VARIABLE] = registry_uri
    working_folder = Path(assignment.store.working_folder)
    log = root / "delivery.log"
    with contextlib.suppress(FileNotFoundError):  # there is none, or another process has just replaced it
        if log.stat().st_size > _LOG_LIMIT:
            os.replace(log, log.with_suffix(".log.1"))
    with open(log, "ab") as output:
        # -P: a user's mlflow.py in the working folder must not shadow MLflow. No preexec_fn: it rules out vfork, which
        # cost a trainer of 3.7 GB 154 ms.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_ENTRY), str(root)],
            stdin=stdin,
            stdout=output,
            stderr=output,
            cwd=working_folder if working_folder.is_dir() else root,
            env=environment,
            start_new_session=True,
        )
    lower_priority(process.pid)
    return process


def store_environment(uri: str) -> dict[str, str]:
    """Return the environment variables that let MLflow reach the store at `uri`.

    Credentials travel through the environment because every user can read a command line. Those of a server are kept
    out of its URI because MLflow prints that.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return {TRACKING_URI_VARIABLE: uri}
    return {
        TRACKING_URI_VARIABLE: urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password or ""),
    }


_launchers: dict[tuple[Path, str, str | None, int], DeliveryLauncher] = {}
_registry_lock = threading.Lock()


def launcher_for(settings: Settings, journal_root: Path) -> DeliveryLauncher:
    """Return the launcher shared by all runs of this process that have this journal root and store."""
    with _registry_lock:
        key = (journal_root, settings.tracking_uri, settings.registry_uri, os.getpid())
        return _launchers.setdefault(key, DeliveryLauncher(settings, journal_root))


def detach_all() -> None:
    """Let every delivery process of this process outlive it."""
    for launcher in list(_launchers.values()):
        launcher.detach()
