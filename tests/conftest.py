"""Fixtures for all tests: a clean environment, a real MLflow server on the loopback interface, leak checks."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from faults.trainers import Trainers
from processes import free_port, stop_delivery, wait_for
from servers import Server, start_server, stop_server
from tracking_callbacks import Delivery, MLflowTracker

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch that share a core wait for each other by spinning

# What `mlflow.set_tracking_uri` and our own client's store set for their process.
MLFLOW_URIS = {
    "mlflow.tracking._tracking_service.utils": "_tracking_uri",
    "mlflow.tracking._model_registry.utils": "_registry_uri",
}

# A script's `make test &` ignores SIGINT, and so would every process that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("noisy machine", deadline=None)
hypothesis.settings.load_profile("noisy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need an MLflow server or processes of trainers, so that `make fast` can leave them out.

    Those that mostly wait go first, on one of three workers. At the end, the others would wait with them.
    """
    items.sort(key=lambda item: item.path.name != "test_server.py")
    for item in items:
        if {"server", "forking_trainers"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_sessionfinish() -> None:
    """Save what coverage has measured: xdist kills a worker that takes more than ten seconds to exit."""
    if (module := sys.modules.get("coverage")) is not None and (measured := module.Coverage.current()) is not None:
        measured.save()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the session its own temp folder, so that what SB3 and MLflow leave there is removed with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def clean_environment(no_leaks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's environment variables and the URIs of other tests, and run each test in its own folder."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "TRACKING_CALLBACKS_")) and name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for module, uri in MLFLOW_URIS.items():
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], uri, None)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def children_without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep coverage's own modules and memory out of child processes that a test measures."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves behind a process, an environment variable or a file outside its folder."""
    before = dict(os.environ)
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    fallback = Path(tempfile.gettempdir()) / f"tracking_callbacks-{os.getuid()}"
    there = fallback.exists()
    yield
    stop_delivery(tmp_path)
    shared = tmp_path_factory.getbasetemp()

    def left() -> list[str]:
        found = [process for process in psutil.Process().children(recursive=True) if process.pid not in children]
        return [line for process in found if str(shared) not in (line := _command_line(process)) and line]

    wait_for(lambda: not left(), f"no process is left behind: {left()}")
    assert {name for name in os.environ if name.startswith(("MLFLOW_", "TRACKING_"))} <= set(before)
    assert fallback.exists() == there


def _command_line(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real MLflow server for the whole test session."""
    started = start_server(tmp_path_factory.mktemp("server"), free_port())
    yield started
    stop_server(started)


@pytest.fixture(scope="session")
def forking_trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    """The processes that fork the trainers of the fault tests: each imports its frameworks only once."""
    started = Trainers(tmp_path_factory.mktemp("trainers"))
    yield started
    started.close()


@pytest.fixture
def trainers(forking_trainers: Trainers) -> Iterator[Trainers]:
    """Starts trainers; none of them outlives the test."""
    yield forking_trainers
    forking_trainers.kill_left_over()


@pytest.fixture(scope="session")
def shared_journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One journal root, and therefore one delivery process, for all tests that log from the test process itself."""
    root = tmp_path_factory.mktemp("journal")
    yield root
    stop_delivery(root)


@pytest.fixture
def client(server: Server):
    """A client of the server, to read back what has arrived."""
    from mlflow import MlflowClient

    return MlflowClient(server.uri, server.uri)


@pytest.fixture
def tracker(server: Server, shared_journal: Path) -> MLflowTracker:
    """A tracker on the real server with an experiment for this test."""
    return MLflowTracker(server.uri, f"test-{uuid.uuid4().hex[:8]}", delivery=Delivery(journal_root=shared_journal))
