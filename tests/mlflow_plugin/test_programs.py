"""Unchanged MLflow programs in real processes: without a server, with one that dies, and killed.

The server is exact in the end: each point once, every file, the true status.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from faults.trainers import SOAK
from mlflow_plugin.unchanged import EXPERIMENT
from processes import artifacts, free_port, run_script, stop_delivery, wait_for
from servers import Server, start_server, stop_server

pytestmark = pytest.mark.timeout(400)

UNCHANGED = Path(__file__).with_name("unchanged.py")
# What the lock does not have is run by `make integrations`.
NEEDS = {"lightning": "lightning", "xgboost": "xgboost", "lightgbm": "lightgbm", "ray": "ray"}
STEPS = {"fluent": 60, "transformers": 40, "lightning": 40, "optuna": 12, "ray": 10}
FEW = 4  # of the programs whose steps are whole fits
PROGRAMS = ["fluent", "transformers", "sklearn", "optuna", "lightning", "xgboost", "lightgbm", "ray"]


# The other cells of the table take minutes and have a target of their own.
QUICK = {("fluent", "without"), ("fluent", "killed")}


@pytest.fixture(params=PROGRAMS)
def program(request) -> str:
    fault = next(word for word in ("without", "server", "killed") if f"_{word}_" in request.function.__name__)
    if (request.param, fault) not in QUICK and not SOAK:
        pytest.skip("takes minutes; make integrations runs this")
    if (module := NEEDS.get(request.param)) is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed; make integrations runs this")
    return request.param


@dataclass
class Own:
    """A server that a test may stop and start again on the same data."""

    server: Server

    @property
    def uri(self) -> str:
        return self.server.uri

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

    def restart(self) -> None:
        stop_server(self.server)
        self.server = start_server(self.server.folder, int(self.uri.rpartition(":")[2]))


@pytest.fixture
def own(tmp_path_factory) -> Iterator[Own]:
    """A server for this test alone."""
    started = Own(start_server(tmp_path_factory.mktemp("own"), free_port()))
    yield started
    stop_server(started.server)


@contextmanager
def started(
    name: str, uri: str, folder: Path, steps: int, pace: float, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process, which is killed when the block exits."""
    environment = {"MLFLOW_TRACKING_URI": f"journal+{uri}", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    (folder / "settings.yaml").write_text("delivery: {flush_timeout: 1}")
    environment["TRACKING_CALLBACKS_CONFIG"] = str(folder / "settings.yaml")
    with open(folder / f"{name}.err", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(UNCHANGED), name, str(steps), str(pace)],
            cwd=folder,
            env=os.environ | environment | variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def until_step(process: subprocess.Popen[str], step: int) -> int:
    """Read a program's output until a step is over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return int(line.split()[1])
    raise AssertionError("the program ended before the step")


def finish(process: subprocess.Popen[str], folder: Path, name: str) -> None:
    process.communicate(timeout=240)
    assert process.returncode == 0, (folder / f"{name}.err").read_text()[-4000:]


def sync(folder: Path, uri: str) -> None:
    code = f"from tracking_callbacks.cli import main; main(['sync', '--tracking-uri', {uri!r}])"
    done = run_script(code, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr


def runs(client: MlflowClient) -> list[Run]:
    """Return the program's runs, oldest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = [] if experiment is None else client.search_runs([experiment.experiment_id])
    return sorted(found, key=lambda run: run.info.start_time)


def steps_of(client: MlflowClient, run: Run, metric: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, metric))


def named(client: MlflowClient, name: str) -> list[Run]:
    return [run for run in runs(client) if run.info.run_name == name]


class Check:
    """What the server must hold of a program: after all of its steps, or after some of a killed one.

    Args:
        client: A client of the server.
        steps: The steps of the program.
        reached: The last step whose calls had returned when the program was killed; None if it was not.
    """

    def __init__(self, client: MlflowClient, steps: int, reached: int | None = None) -> None:
        self.client, self.steps, self.reached = client, steps, reached
        self.status = "FINISHED" if reached is None else "KILLED"

    def points(self, run: Run, metric: str) -> None:
        found = steps_of(self.client, run, metric)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= self.reached if self.reached is not None else len(found) == self.steps

    def text(self, uri: str) -> str:
        return Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=self.client.tracking_uri)).read_text()

    def fluent(self) -> None:
        (run,) = named(self.client, "outer")
        assert run.info.status == self.status
        for metric in ("loss", "a", "b"):
            self.points(run, metric)
        assert run.data.params == {"lr": "0.1", "text": "ü"}
        assert {"files/file.txt", "texts/t.txt", "d.json", "f.png", "i.png", "table.json"} <= set(
            artifacts(self.client, run.info.run_id)
        )
        assert self.text(f"{run.info.artifact_uri}/files/file.txt") == "content"
        assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["frame"]
        nested = [one for one in runs(self.client) if one.info.run_name.startswith("inner")]
        assert len(nested) >= (self.reached or self.steps) // 10
        for child in nested[: (self.reached or self.steps) // 10]:
            assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
            assert child.info.status == "FINISHED"
            assert artifacts(self.client, child.info.run_id) == ["step.txt"]

    def transformers(self) -> None:
        (run,) = named(self.client, "bert")
        assert run.info.status == self.status
        self.points(run, "loss")
        assert run.data.params["max_steps"] == str(self.steps)
        saved = [model for model in self.models() if "checkpoint" in model.name]
        assert len(saved) >= (self.reached or self.steps) // (self.steps // 2)
        assert all(str(model.status) == "READY" for model in saved) or self.reached is not None

    def lightning(self) -> None:
        (run,) = named(self.client, "light")
        assert run.info.status == self.status
        found = steps_of(self.client, run, "loss")
        assert found == list(range(len(found)))
        assert len(found) == self.steps if self.reached is None else len(found) >= self.reached - 1
        if self.reached is None:
            assert any(path.endswith(".ckpt") for path in artifacts(self.client, run.info.run_id))

    def fits(self, name: str) -> None:
        done = self.steps if self.reached is None else self.reached
        versions = self.client.search_model_versions(f"name = '{name}'")
        assert len(versions) >= done
        for step in range(1, done + 1):
            (run,) = named(self.client, f"fit {step}")
            assert run.info.status == "FINISHED"
            (output,) = run.outputs.model_outputs
            model = self.client.get_logged_model(output.model_id)
            assert str(model.status) == "READY"
            assert [one.run_id for one in versions if one.source == f"models:/{model.model_id}"] == [run.info.run_id]
            mlmodel = self.text(f"{model.artifact_location}/MLmodel")
            assert f"model_id: {model.model_id}" in mlmodel
            assert f"run_id: {run.info.run_id}" in mlmodel
        assert all(run.info.status in ("FINISHED", "KILLED") for run in runs(self.client))

    def sklearn(self) -> None:
        self.fits("fitted")

    def xgboost(self) -> None:
        self.fits("boosted")

    def lightgbm(self) -> None:
        self.fits("boosted")

    def optuna(self) -> None:
        (study,) = named(self.client, "study")
        assert study.info.status == self.status
        trials = [run for run in runs(self.client) if run.info.run_id != study.info.run_id]
        assert len(trials) == self.steps if self.reached is None else len(trials) >= self.reached
        for trial in trials:
            assert trial.data.tags["mlflow.parentRunId"] == study.info.run_id
            assert trial.info.status in ("FINISHED", self.status)
            assert len(steps_of(self.client, trial, "value")) == 1 or trial.info.status == "KILLED"

    def ray(self) -> None:
        trials = runs(self.client)
        assert len(trials) == 2
        for trial in trials:
            assert trial.info.status == self.status
            assert len(steps_of(self.client, trial, "loss")) == self.steps or self.reached is not None

    def models(self) -> list[mlflow.entities.LoggedModel]:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        return list(self.client.search_logged_models([experiment.experiment_id]))


def all_ended(client: MlflowClient) -> bool:
    found = runs(client)
    return bool(found) and all(run.info.status != "RUNNING" for run in found)


def test_without_a_server_everything_arrives_with_a_sync(program: str, own: Own, tmp_path: Path) -> None:
    steps = STEPS.get(program, FEW)
    with started(program, f"http://127.0.0.1:{free_port()}", tmp_path, steps, 0) as process:
        finish(process, tmp_path, program)
    stop_delivery(tmp_path)
    sync(tmp_path, own.uri)

    getattr(Check(own.client(), steps), program)()


def test_a_server_that_is_killed_three_times_has_everything_in_the_end(program: str, own: Own, tmp_path: Path) -> None:
    steps = STEPS.get(program, FEW)
    pace = 0.4 if program in STEPS else 2.0
    with started(program, own.uri, tmp_path, steps, pace) as process:
        for step in range(3) if program != "ray" else ():
            until_step(process, max(steps * (step + 1) // 5, 1))
            own.restart()
        if program == "ray":
            for _ in range(3):
                own.restart()
        finish(process, tmp_path, program)
    sync(tmp_path, own.uri)

    getattr(Check(own.client(), steps), program)()


def test_a_killed_program_is_killed_and_has_every_point_whose_call_had_returned(
    program: str, own: Own, tmp_path: Path
) -> None:
    steps = STEPS.get(program, FEW)
    with started(program, own.uri, tmp_path, steps, 0.1 if program in STEPS else 1.0) as process:
        if program == "ray":
            client = own.client()
            wait_for(lambda: len(runs(client)) == 2, "both trials have begun", 120)
            reached = 0
        else:
            reached = until_step(process, steps * 2 // 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        client = own.client()
        wait_for(lambda: all_ended(client), "the runs have ended", 60)
        sync(tmp_path, own.uri)

    getattr(Check(client, steps, reached), program)()


def test_two_programs_on_one_run_both_log_exactly_once(own: Own, tmp_path: Path) -> None:
    check_two(own, tmp_path, own.uri)


def test_two_programs_on_one_provisional_run_both_log_exactly_once(own: Own, tmp_path: Path) -> None:
    check_two(own, tmp_path, f"http://127.0.0.1:{free_port()}")


def check_two(own: Own, tmp_path: Path, uri: str) -> None:
    steps = 40
    with started("fluent", uri, tmp_path, steps, 0.05) as first:
        assert first.stdout is not None
        run_id = next(line.split()[1] for line in first.stdout if line.startswith("run "))
        other = tmp_path / "other"
        other.mkdir()
        with started("fluent", uri, other, steps, 0.05, JOIN=run_id, WORKER="2") as second:
            finish(second, other, "fluent")
        finish(first, tmp_path, "fluent")
    stop_delivery(tmp_path)
    sync(tmp_path, own.uri)
    client = own.client()
    (run,) = named(client, "outer")

    for metric in ("loss", "a", "b", "loss2", "a2", "b2"):
        assert steps_of(client, run, metric) == list(range(1, steps + 1))
    assert run.data.params == {"lr": "0.1", "text": "ü", "lr2": "0.1", "text2": "ü"}
    assert {"files/file.txt", "files2/file.txt"} <= set(artifacts(client, run.info.run_id))
    assert run.info.status == "FINISHED"
    assert len([one for one in runs(client) if one.info.run_name.startswith("inner")]) == 8
