"""One list of calls, over ``http://`` and over ``journal+http://``: the same answers, and the same store in the end."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_plugin.conftest import delivered, forget
from mlflow_plugin.programs import Program, answers, plain
from servers import Server

# Over HTTP the client raises protobuf's TypeError, not the MlflowException of MLflow's documentation.
NO_NUMBER = "refusals 8"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def outcomes(server: Server, tmp_path_factory) -> dict[str, tuple[dict[str, Any], Any]]:
    """What the calls answered, and what the server holds then, by the prefix of the URI."""
    found = {}
    before = mlflow.get_tracking_uri()
    for prefix in ("", "journal+"):
        folder = tmp_path_factory.mktemp("calls")
        (folder / "pyproject.toml").touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", "")
            patch.setenv("MLFLOW_EXPERIMENT_ID", "")
            patch.setenv("TRACKING_CALLBACKS_JOURNAL", str(folder / "journal"))
            forget()
            mlflow.set_tracking_uri(prefix + server.uri)
            name = f"same-{uuid.uuid4().hex[:8]}"
            program = Program(MlflowClient(), name, folder / "files")
            answered = answers(program)
            if prefix:
                delivered(server.uri)
            mlflow.set_tracking_uri(before)
            found[prefix] = answered, content(MlflowClient(server.uri), name)
            forget()
    return found


def test_there_are_enough_calls(outcomes) -> None:
    assert len(outcomes[""][0]) >= 150


def test_every_call_answers_the_same(outcomes) -> None:
    (direct, _), (journaled, _) = outcomes[""], outcomes["journal+"]

    del direct[NO_NUMBER], journaled[NO_NUMBER]
    different = [f"{name}\n  {direct[name]}\n  {journaled[name]}" for name in direct if direct[name] != journaled[name]]
    assert not different, "\n".join(different)


def test_the_store_holds_the_same_in_the_end(outcomes) -> None:
    (_, direct), (_, journaled) = outcomes[""], outcomes["journal+"]

    different = [name for name in direct | journaled if direct.get(name) != journaled.get(name)]
    assert not different, "\n".join(f"{name}\n  {direct.get(name)}\n  {journaled.get(name)}" for name in different)


def content(client: MlflowClient, name: str) -> Any:
    """Return everything that a server holds of an experiment and its registered models, in a comparable form."""
    experiment = client.get_experiment_by_name(name)
    ids: dict[str, str] = {}
    runs = sorted(
        client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL),
        key=lambda run: (
            (run.info.start_time, run.info.run_name)
            if run.info.start_time < 1_750_000_000_000
            else (2**60, run.info.run_name)
        ),
    )
    found: dict[str, Any] = {"experiment": plain(experiment.tags, ids)}
    for run in runs:
        _hide_times(run)
        found[run.info.run_name] = [
            plain(run, ids),
            {
                key: plain(list(map(dict, client.get_metric_history(run.info.run_id, key))), ids)
                for key in run.data.metrics
                if not key.startswith("many/")
            },
            files(client, run.info.run_id),
        ]
    models = client.search_logged_models([experiment.experiment_id])
    for model in sorted(models, key=lambda one: one.name):
        found[f"model {model.name}"] = plain(model, ids)
    found["versions"] = plain(list(client.search_model_versions(f"name = '{name}-model'")), ids)
    found["registered"] = plain(client.get_registered_model(f"{name}-model"), ids)
    return _renamed(found, name)


def files(client: MlflowClient, run_id: str) -> dict[str, str]:
    folder = Path(client.download_artifacts(run_id, ""))
    return {
        str(path.relative_to(folder)): path.read_bytes().hex()
        for path in folder.rglob("*")
        if path.is_file() and "images" not in path.parts and path.name != "error.txt"
    }


def _hide_times(run: Any) -> None:
    if run.info.start_time > 1_750_000_000_000:
        run.info._start_time = 0
    if (run.info.end_time or 0) > 1_750_000_000_000:
        run.info._end_time = 0
    for tag in ("mlflow.source.name",):
        run.data.tags.pop(tag, None)


def _renamed(value: Any, name: str) -> Any:
    import json

    return json.loads(json.dumps(value).replace(name, "<name>"))
