"""Real MLflow servers for tests and soaks."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from processes import wait_for


@dataclass(frozen=True)
class Server:
    """A real MLflow server."""

    uri: str
    folder: Path
    process: subprocess.Popen[bytes]


def start_server(folder: Path, port: int) -> Server:
    """Start an MLflow server with a SQLite store and proxied artifacts, and wait until it answers."""
    uri = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            # Its job workers start late and would look like processes that a test left behind.
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait_for(answers, "the MLflow server answers", seconds=90)
    return Server(uri, folder, process)


def stop_server(server: Server) -> None:
    """Kill a server and its workers, which the test started."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.process.wait(timeout=30)
