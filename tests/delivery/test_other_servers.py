"""Delivery to MLflow servers of other versions; ``make servers`` installs and names them.

``OTHER_SERVERS`` holds the interpreters of their environments, separated by ``:``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from faults.proxy import Proxy, running_proxy
from processes import free_port
from servers import Server, start_server, stop_server
from tracking_callbacks import Delivery, MLflowTracker, Recording

PYTHONS = [Path(path) for path in os.environ.get("OTHER_SERVERS", "").split(":") if path]

if not PYTHONS:
    pytest.skip("OTHER_SERVERS names no environments: run `make servers`", allow_module_level=True)


def version_of(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('mlflow'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda python: f"mlflow {version_of(python)}")
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    started = start_server(tmp_path_factory.mktemp("other"), free_port(), python=request.param)
    yield version_of(request.param), started
    stop_server(started)


@pytest.fixture
def proxy(other: tuple[str, Server]) -> Iterator[Proxy]:
    with running_proxy(other[1].uri) as running:
        yield running


def artifacts(server: Server, run_id: str, folder: str = "") -> set[str]:
    """Return the paths of a run's artifacts; MLflow 3's client cannot list those of a server before 3.0."""
    query = urlencode({"run_id": run_id, "path": folder})
    with urllib.request.urlopen(f"{server.uri}/api/2.0/mlflow/artifacts/list?{query}") as answer:
        found = json.load(answer).get("files", [])
    deeper = [artifacts(server, run_id, one["path"]) for one in found if one.get("is_dir")]
    return {one["path"] for one in found if not one.get("is_dir")}.union(*deeper)


def test_a_run_with_a_registered_model_is_complete(other, proxy: Proxy, mlmodel: Path, tmp_path: Path) -> None:
    version, server = other
    name = f"model-{uuid.uuid4().hex[:8]}"
    delivery = Delivery(journal_root=tmp_path / "journal")
    tracker = MLflowTracker(proxy.uri, "versions", record=Recording.only(pictures=True), delivery=delivery)
    (tmp_path / "ü b.txt").write_text("content")
    with tracker.start_run("a run", tags={"team": "ü"}) as run:
        run.log_params({"lr": 0.1, "empty": "", "long": "x" * 400} | {f"p{number}": number for number in range(150)})
        for step in range(1200):
            run.log_metrics({"train/loss": 1 / (step + 1), "train/nan": math.nan, "train/inf": math.inf}, step=step)
        run.log_artifact(tmp_path / "ü b.txt", "deep/er")
        run.log_table({"a": [1, 2]}, "tables/t.json")
        run.log_dataset("reviews", dataset=[{"text": "good", "label": 1}], context="training")
        run.draw("learning_curves")
        run.log_model(mlmodel, registered_model_name=name, aliases=["champion"], tags={"task": "double"})
    report = run.flush()

    assert (report.complete, report.rejected) == (True, 0), report
    client = MlflowClient(server.uri, server.uri)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "a run")
    assert (stored.data.params["lr"], stored.data.params["empty"], len(stored.data.params)) == ("0.1", "", 153)
    assert stored.data.tags["team"] == "ü"
    history = {key: client.get_metric_history(run.run_id, key) for key in ("train/loss", "train/nan", "train/inf")}
    assert [(point.step, point.value) for point in history["train/loss"]] == [(n, 1 / (n + 1)) for n in range(1200)]
    assert all(math.isnan(point.value) for point in history["train/nan"])
    assert {len(points) for points in history.values()} == {1200}
    assert {"deep/er/ü b.txt", "tables/t.json", "figures/learning_curves.png"} <= artifacts(server, run.run_id)
    assert [one.dataset.name for one in stored.inputs.dataset_inputs] == ["reviews"]
    registered = client.get_model_version_by_alias(name, "champion")
    assert (registered.run_id, registered.tags["task"]) == (run.run_id, "double")
    if version.startswith("2."):
        assert "model/MLmodel" in artifacts(server, run.run_id)
        assert registered.source.endswith(f"{run.run_id}/artifacts/model")
    else:
        (output,) = stored.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert str(model.status) == "READY"
        linked = {metric.key for metric in model.metrics}
        assert linked >= {"train/loss", "train/inf"}
        assert ("train/nan" in linked) == takes_a_nan_again(client, run.run_id)
    refused = [line for line in proxy.refused if not line.startswith("404") and "IntegrityError" not in line]
    assert not refused, "a request was not understood"


def takes_a_nan_again(client: MlflowClient, run_id: str) -> bool:
    """Return whether the server accepts a NaN that it has; MLflow 3.0 and 3.10 do not, so no model is linked to it."""
    point = client.get_metric_history(run_id, "train/nan")[0]
    try:
        client.log_metric(run_id, point.key, math.nan, point.timestamp, point.step)
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        return False
    return True


def test_a_resumed_run_continues(other, tmp_path: Path) -> None:
    delivery = Delivery(journal_root=tmp_path / "journal")
    tracker = MLflowTracker(other[1].uri, "versions", record=False, delivery=delivery)
    with tracker.start_run() as run:
        run.log_metrics({"loss": 1.0}, step=1)
    assert run.flush().complete
    again = tracker.resume_run(run.run_key, at_step=1)
    again.log_metrics({"loss": 0.5}, step=2)
    again.end("FAILED")
    assert again.flush().complete

    client = MlflowClient(other[1].uri, other[1].uri)
    assert again.run_id == run.run_id
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert [point.value for point in client.get_metric_history(run.run_id, "loss")] == [1.0, 0.5]
