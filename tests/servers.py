"""Real MLflow servers for tests and soaks."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from processes import free_port, wait_for


@dataclass(frozen=True)
class Server:
    """A real MLflow server."""

    uri: str
    folder: Path
    process: subprocess.Popen[bytes]


def start_server(
    folder: Path,
    port: int,
    *,
    python: Path | str = sys.executable,
    store: str | None = None,
    workers: int = 1,
    artifacts: str | None = None,
    proxied: bool = True,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start an MLflow server with proxied artifacts, and wait until it answers.

    Args:
        folder: Where it keeps everything.
        port: Where it listens.
        python: The interpreter of the environment that MLflow is installed in.
        store: URI of its database; None means SQLite in `folder`.
        workers: Number of its processes.
        artifacts: Where artifacts lie; None means in `folder`.
        proxied: The server passes artifacts on; otherwise clients reach their place themselves.
        options: Further options of ``mlflow server``.
        environment: Its environment variables in addition to those of the tests.
    """
    uri = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            [
                *(str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", store or f"sqlite:///{folder / 'server.db'}", "--workers", str(workers)),
                *(["--artifacts-destination"] if proxied else ["--no-serve-artifacts", "--default-artifact-root"]),
                artifacts or str(folder / "artifacts"),
                *options,
            ],
            cwd=folder,
            # Its job workers start late and would look like processes that a test left behind.
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | dict(environment or {}),
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


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server below `folder` until the block exits, and yield the URI of its database.

    PostgreSQL refuses to run as root, so root runs it as the user ``postgres``.
    """
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)))
    programs, data, port = Path(found).parent, folder / "postgres", free_port()
    data.mkdir(mode=0o700)
    prefix: list[str] = []
    if os.getuid() == 0:
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(data, "postgres", "postgres")
        folder.chmod(0o755)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*prefix, programs / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], check=True, **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200"
    control = [*prefix, programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", data / "log", "-o", options, "start"], check=True, **quiet)
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)


@contextmanager
def serving(model_uri: str, folder: Path) -> Iterator[str]:
    """Let ``mlflow models serve`` answer for a registered model until the block exits, and yield its address."""
    uri, command = f"http://127.0.0.1:{(port := free_port())}", [sys.executable, "-m", "mlflow", "models", "serve"]
    with open(folder / "serve.log", "ab") as log:
        process = subprocess.Popen(
            [*command, "-m", model_uri, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            # It looks for uvicorn on the path, where an activated environment has it.
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "serve.log").read_text()
        try:
            with urllib.request.urlopen(f"{uri}/ping", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_for(answers, "the model is served", seconds=90)
        yield uri
    finally:
        if process.poll() is None:
            stop_server(Server(uri, folder, process))


def stop_server(server: Server) -> None:
    """Kill a server and its workers, which the test started."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.process.wait(timeout=30)
