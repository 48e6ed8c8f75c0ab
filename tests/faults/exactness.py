"""Trainings in processes of their own, and the comparison of a store with the ledger of what each has accepted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from faults.training import LEDGER, STOP, TIMES, WEIGHTS, Plan, digest, files_of
from processes import wait_for
from tracking_callbacks.records import (
    Artifact,
    Dataset,
    Metrics,
    Model,
    Params,
    Record,
    RunEnded,
    SessionOpened,
    Tags,
    decode,
)

KINDS = ("core", "huggingface", "sb3")

_SAVING_HOOKS = {"on_train_end", "_on_training_end", "log_model"}  # they write the model's files, and import MLflow


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, running or ended."""

    kind: str
    folder: Path
    experiment: str
    plan: Plan
    process: subprocess.Popen[bytes]

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")

    def stop(self) -> None:
        """Let it come to its end after the present step."""
        (self.folder / STOP).touch()

    def ended(self, seconds: float = 90) -> int:
        """Wait for the end of its process, and return the exit code."""
        wait_for(lambda: self.process.poll() is not None, f"{self.kind} ends: {self.errors}", seconds=seconds)
        return self.process.returncode

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines of the ledger."""
        path = self.folder / LEDGER
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def records(self) -> list[Record]:
        """Return what has been accepted so far."""
        return [decode(bytes.fromhex(line["record"])) for line in self.lines()]

    def accepted_points(self) -> int:
        """Return how many records of metrics have been accepted so far."""
        return sum(isinstance(record, Metrics) for record in self.records())

    def weights(self) -> list[str]:
        """Return digests of the final weights: of the training without tracking, if there was one, and with it."""
        return json.loads((self.folder / WEIGHTS).read_text(encoding="utf-8"))

    def hook_seconds(self) -> list[float]:
        """Return how long each hook or call took, without those that save the model."""
        lines = (json.loads(line) for line in (self.folder / TIMES).read_text(encoding="utf-8").splitlines())
        return [seconds for name, seconds in lines if name not in _SAVING_HOOKS]


@contextmanager
def trainings(
    folder: Path, uri: str, kinds: Iterable[str] = KINDS, env: dict[str, str] | None = None, **plan: Any
) -> Iterator[list[Training]]:
    """Start a training of each kind at once, each in a folder and an experiment of its own; none outlives the block."""
    running: list[Training] = []
    try:
        for kind in kinds:
            running.append(_start(folder / kind, uri, kind, env or {}, plan))
        yield running
    finally:
        for training in running:
            if training.process.poll() is None:
                training.process.kill()
            training.process.wait(timeout=30)


def _start(folder: Path, uri: str, kind: str, env: dict[str, str], plan: dict[str, Any]) -> Training:
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    unique = f"{kind}-{uuid.uuid4().hex[:8]}"
    chosen = Plan(**{"model_name": unique} | plan)
    with open(folder / "stdout.txt", "wb") as output, open(folder / "stderr.txt", "wb") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("training.py")),
                kind,
                json.dumps(dataclasses.asdict(chosen)),
            ],
            cwd=folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": unique} | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
    return Training(kind, folder, unique, chosen, process)


def check_nothing_waited(training: Training) -> None:
    """No hook or call has waited for tracking; a busy machine is allowed for, a request's time-out is not."""
    seconds = training.hook_seconds()

    assert statistics.median(seconds) < 0.02, training.kind
    assert max(seconds) < 1.5, training.kind


# -- the store against the ledger ------------------------------------------------------------------------------------


def runs_of(client: MlflowClient, experiment: str) -> list[Run]:
    """Return the runs of an experiment, which may not exist yet."""
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def check_exact(client: MlflowClient, training: Training, status: str = "FINISHED") -> Run:
    """Compare everything that the store holds of a training with its ledger, and return the run."""
    records = training.records()
    (run,) = runs_of(client, training.experiment)
    opened = [record for record in records if isinstance(record, SessionOpened)]
    ends = [record for record in records if isinstance(record, RunEnded)]

    assert run.info.status == status
    assert run.info.start_time == opened[0].timestamp
    assert not ends or run.info.end_time == next(end.timestamp for end in reversed(ends) if end.status)
    assert stored_points(client, run) == accepted_points(records)
    assert run.data.params == accepted_params(records)
    assert user_tags(run) == accepted_tags(records)
    assert sorted((i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs) == sorted(
        {(record.name, record.digest) for record in records if isinstance(record, Dataset)}
    )
    assert stored_files(client, run) == accepted_files(training)
    for model in (record for record in records if isinstance(record, Model)):
        check_model(client, run, training, model)
    return run


def accepted_points(records: list[Record]) -> list[tuple[str, int, int, str]]:
    return sorted(
        (key, record.timestamp, record.step, repr(_as_stored(value)))
        for record in records
        if isinstance(record, Metrics)
        for key, value in record.metrics.items()
    )


def stored_points(client: MlflowClient, run: Run) -> list[tuple[str, int, int, str]]:
    return sorted(
        (key, point.timestamp, point.step, repr(point.value))
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def _as_stored(value: float) -> float:
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else float(value)


def accepted_params(records: list[Record]) -> dict[str, str]:
    accepted: dict[str, str] = {}
    for record in records:
        if isinstance(record, Params):
            accepted = record.params | accepted  # the first value stays
    return accepted


def accepted_tags(records: list[Record]) -> dict[str, str]:
    accepted: dict[str, str] = {}
    for record in records:
        if isinstance(record, (Tags, SessionOpened)):
            accepted |= record.tags
    return accepted


def user_tags(run: Run) -> dict[str, str]:
    own = {"tracking_callbacks.run_key", "tracking_callbacks.session", "mlflow.runName"}
    return {key: text for key, text in run.data.tags.items() if key not in own}


def accepted_files(training: Training) -> dict[str, str]:
    """Return the digests of all artifacts that the run must have, by their paths."""
    accepted: dict[str, str] = {}
    for line in training.lines():
        record = decode(bytes.fromhex(line["record"]))
        if isinstance(record, Artifact):
            place = f"{record.artifact_path}/" if record.artifact_path else ""
            accepted |= {f"{place}{path}": content for path, content in line["files"].items()}
    return accepted


def stored_files(client: MlflowClient, run: Run) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as target:
        if not client.list_artifacts(run.info.run_id):
            return {}
        folder = Path(client.download_artifacts(run.info.run_id, "", target))
        return {path.relative_to(folder).as_posix(): digest(path) for path in files_of(folder)}


def check_model(client: MlflowClient, run: Run, training: Training, record: Model) -> None:
    """The model is there once, linked, registered and tagged once, with the files that were saved, and it loads."""
    import mlflow

    models = client.search_logged_models([run.info.experiment_id])
    (model,) = [one for one in models if one.tags["tracking_callbacks.record"] == record.record_key]
    assert [output.model_id for output in run.outputs.model_outputs] == [one.model_id for one in models]
    assert str(model.status) in ("READY", "LoggedModelStatus.READY")
    assert (model.name, model.source_run_id) == (record.name, run.info.run_id)
    if record.registered_model_name is None:
        return
    (version,) = client.search_model_versions(f"name = '{record.registered_model_name}'")
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    for alias in record.aliases:
        assert client.get_model_version_by_alias(version.name, alias).version == "1"
    saved = next(line["files"] for line in training.lines() if decode(bytes.fromhex(line["record"])) == record)
    with tempfile.TemporaryDirectory() as target:
        mlflow.set_tracking_uri(client.tracking_uri)
        try:
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/1", dst_path=target))
            assert mlflow.pyfunc.load_model(str(folder)).metadata.model_id == model.model_id
        finally:
            mlflow.set_tracking_uri(None)
        stored = {path.relative_to(folder).as_posix(): digest(path) for path in files_of(folder)}
    expected = {path.partition("/")[2]: content for path, content in saved.items()}
    changed = {path for path in stored.keys() | expected.keys() if stored.get(path) != expected.get(path)}
    assert changed <= {"MLmodel", "registered_model_meta"}, training.kind
