"""Real processes for tests: start a script, wait for a condition with a deadline, find leftovers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tracking_callbacks._contents import AUTOMATIC_ARTIFACTS

T = TypeVar("T")

_pause = threading.Event()


def wait_for(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """Poll until `condition` returns something true, and return it; fail after `seconds`."""
    deadline = _now() + seconds
    while not (value := condition()):
        if _now() > deadline:
            raise AssertionError(f"not reached within {seconds:.0f} s: {what}")
        _pause.wait(0.02)
    return value


def _now() -> float:
    import time

    return time.monotonic()


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def script(
    code: str, *, cwd: Path, env: dict[str, str] | None = None, under: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a separate process, which is killed when the block exits.

    Args:
        code: The code, indented as in the test.
        cwd: Its working folder.
        env: Environment variables in addition to those of the tests.
        under: A command that starts the interpreter, with its options.
    """
    process = subprocess.Popen(
        [*under, sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_script(
    code: str, *, cwd: Path, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a separate process and wait for it."""
    with script(code, cwd=cwd, env=env) as process:
        output, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def delivery_processes(folder: Path) -> list[psutil.Process]:
    """Return the delivery processes that serve a journal root at or below `folder`.

    A process that one of them is about to turn into another program still has its name, and is left out.
    """
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(part.endswith("_delivery/__main__.py") for part in line) and Path(line[-1]).is_relative_to(folder):
            found.append(process)
    pids = {process.pid for process in found}
    return [process for process in found if _parent(process) not in pids]


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def stop_delivery(folder: Path) -> None:
    """Kill the delivery processes of journal roots below `folder`, by pid, and wait until they are gone."""
    processes = delivery_processes(folder)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        wait_for(lambda gone=process: not _alive(gone), "the delivery process ends")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    """Return the paths of a run's artifacts, at any depth."""
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def own_artifacts(client: Any, run_id: str) -> list[str]:
    """Return the paths of the artifacts that a run does not get automatically."""
    return [path for path in artifacts(client, run_id) if not path.startswith(AUTOMATIC_ARTIFACTS)]
