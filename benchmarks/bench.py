"""The place for measurements: temporary folders, MLflow servers, and a fresh process for each training run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from processes import delivery_processes, free_port, stop_delivery, wait_for  # noqa: E402
from servers import Server, start_server, stop_server  # noqa: E402

__all__ = ["ROOT", "Bench", "Child", "Store", "delivery_processes", "running_bench", "stop_delivery", "wait_for"]

# Stay off the network, and ignore the tracking variables of the user's shell.
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}
# Cache bytecode, as it is for a user.
_OURS_TO_SET = ("MLFLOW_", "TRACKING_CALLBACKS_", "WANDB_", "TRACKIO_", "PYTHONDONTWRITEBYTECODE")
_CHILD_SECONDS = 1800
_REQUEST = re.compile(rb'"(?:GET|POST|PUT|PATCH|DELETE) /\S* HTTP')


class Store:
    """An MLflow server of this benchmark, with its database and log."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.uri = server.uri
        self.database = server.folder / "server.db"
        self.artifacts = server.folder / "artifacts"

    def connect(self) -> sqlite3.Connection:
        """Open the server's database for reading."""
        return sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)

    def count_points(self, run_id: str) -> tuple[int, int]:
        """Return how many points a run holds, and how many distinct pairs of name and step."""
        with contextlib.closing(self.connect()) as database:
            query = "SELECT count(*), count(DISTINCT key || ' ' || step) FROM metrics WHERE run_uuid = ?"
            found, own = database.execute(query, [run_id]).fetchone()
            return int(found), int(own)

    def check_exact(self, run_id: str, points: int) -> None:
        """Fail unless a run holds exactly that many points, none of them twice."""
        found = self.count_points(run_id)
        if found != (points, points):
            raise AssertionError(f"{points} points were logged, (all, distinct) in the store: {found}")

    def requests(self) -> int:
        """Return how many requests the server has answered, by its own log."""
        return len(_REQUEST.findall((self._server.folder / "server.log").read_bytes()))


class Child:
    """A function under measurement, in a separate process."""

    def __init__(self, folder: Path, cwd: Path, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self.folder = folder
        self._name = f"{function.__module__}:{function.__name__}"
        self._result = folder / "result.json"
        self._log = folder / "child.log"
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "WANDB_DIR": str(folder),
            "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
            "WANDB_CONFIG_DIR": str(folder / "wandb-config"),
            "TRACKIO_DIR": str(folder / "trackio"),
        }
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fresh", self._name, json.dumps(settings), str(self._result)],
                cwd=cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # The kernel divides the cores between sessions first. A new session has the weight of a user's
                # terminal, wherever the benchmark itself was started.
                start_new_session=True,
            )

    def running(self) -> bool:
        """Return whether the process has not ended."""
        return self.process.poll() is None

    def said(self) -> dict[str, Any] | None:
        """Return what the function last sent through `fresh.say`, or None before that."""
        said = self.folder / "said.json"
        return json.loads(said.read_text()) if said.exists() else None

    def answer(self) -> None:
        """Let a function that waits in `fresh.listen` go on."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def result(self) -> dict[str, Any]:
        """Wait for the end and return what the function has returned."""
        code = self.process.wait(_CHILD_SECONDS)
        if code != 0:
            raise RuntimeError(f"{self._name} ended with {code}:\n{self._log.read_text(errors='replace')[-4000:]}")
        return json.loads(self._result.read_text())

    def kill(self) -> None:
        """End the process, and the delivery process that works for it."""
        self.process.kill()
        self.process.wait()
        stop_delivery(self.folder)


class Bench:
    """What one row needs; made by `running_bench`.

    Attributes:
        quick: Sizes are small, and the numbers mean nothing.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.quick = quick
        self._folder = folder
        self._servers: dict[str, Server] = {}
        self._children: list[Child] = []

    def size(self, full: int, quick: int) -> int:
        """Return the size of the work."""
        return quick if self.quick else full

    def folder(self, name: str = "work") -> Path:
        """Return a new folder for a separate project."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        (folder / "pyproject.toml").touch()
        return folder

    def server(self, name: str) -> Store:
        """Return the MLflow server of this name, which starts at its first use and runs until the row is done."""
        if name not in self._servers:
            self._servers[name] = start_server(self.folder("server"), free_port())
        return Store(self._servers[name])

    def start(self, function: Callable[..., Any], *, cwd: Path | None = None, **settings: Any) -> Child:
        """Start a function in a fresh process, in a new folder or in `cwd`; settings and result must be JSON."""
        folder = self.folder()
        child = Child(folder, cwd or folder, function, settings)
        self._children.append(child)
        return child

    def run(self, function: Callable[..., Any], **settings: Any) -> dict[str, Any]:
        """Run a function in a fresh process, wait until its delivery has finished, and return its result."""
        result = self.start(function, **settings).result()
        wait_for(lambda: not delivery_processes(self._folder), "delivery finishes", seconds=120)
        return result

    def close(self) -> None:
        """Kill what is left of the row's processes."""
        for child in self._children:
            if child.running():
                child.kill()
        stop_delivery(self._folder)
        for server in self._servers.values():
            stop_server(server)


@contextlib.contextmanager
def running_bench(*, quick: bool) -> Iterator[Bench]:
    """Make a `Bench` for one row; its folders and processes are removed when the block exits."""
    for name in [name for name in os.environ if name.startswith(_OURS_TO_SET)]:
        del os.environ[name]
    os.environ.update(SURROUNDINGS)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        bench = Bench(Path(name), quick=quick)
        try:
            yield bench
        finally:
            bench.close()
