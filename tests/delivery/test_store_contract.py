"""One list of calls against both ways to a server: what is in the server afterwards is the same, field by field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import DeliveryError, Refused
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.stores.rest import RestStore
from tracking_callbacks._delivery.stores.store import RECORD_TAG, RUN_KEY_TAG, Store
from tracking_callbacks._journal.records import Dataset

START = 1_700_000_000_000
ODD = "odd ü &+;=@[x].txt"


class Calls:
    """The calls, in order; each is named by what it does, and what it returns is part of the comparison."""

    def __init__(self, store: Store, name: str, folder: Path) -> None:
        self.store, self.name, self.folder = store, name, folder
        self.experiment = self.run = self.other = ""
        self.model: Any = None

    def list(self) -> list[Callable[[], object]]:
        store = self.store
        return [
            self.experiment_id,
            self.experiment_id_again,
            lambda: store.check_experiment(self.experiment) == self.experiment,
            lambda: store.check_experiment("987654321"),
            self.create_runs,
            lambda: store.find_runs(self.experiment, "key"),
            lambda: store.find_runs(self.experiment, "none"),
            lambda: store.log_batch(self.run, Batch(metrics=self.points(), params=self.params(), tags={"ü": "ß\n'\""})),
            lambda: store.log_batch(self.run, Batch(metrics=self.points())),  # a replay
            lambda: store.log_batch(self.run, Batch(params={"lr": "another value"})),
            lambda: store.log_batch(self.run, Batch(metrics=[Point("not a ; name", 1.0, START, 1)])),
            lambda: store.log_batch(self.run, Batch(tags={"empty": "", "long": "x" * 5000})),
            lambda: store.history(self.run, "loss"),
            lambda: store.history(self.run, "none"),
            lambda: store.last_step(self.run),
            lambda: store.delete_tag(self.run, "empty"),
            lambda: store.delete_tag(self.run, "none"),
            lambda: store.log_artifact(self.run, self.folder / ODD, None),
            lambda: store.log_artifact(self.run, self.folder / "empty", f"deep/er/{ODD}"),
            lambda: store.log_artifacts(self.run, self.folder, "folder"),
            lambda: store.log_artifacts(self.run, self.folder, None),
            lambda: store.declare_table(self.run, "folder/table.json"),
            lambda: store.declare_table(self.run, "folder/table.json"),
            lambda: store.log_dataset(self.run, self.dataset("train", context="train")),
            lambda: store.log_dataset(self.run, self.dataset("train", context="train")),
            lambda: store.log_dataset(self.run, self.dataset("bare", context="")),
            self.create_model,
            lambda: store.upload_model(self.model, self.folder / "model"),
            lambda: store.upload_model(self.model, self.folder / "model"),
            lambda: [found.ready for found in store.find_models(self.experiment, "record")],
            lambda: store.find_models(self.experiment, "none"),
            lambda: store.link_model(self.run, self.model.model_id, 7),
            lambda: store.link_model(self.run, self.model.model_id, 7),
            lambda: store.add_output(self.run, self.model.model_id, 7),
            lambda: store.link_metrics(self.run, self.model.model_id, [Point("loss", math.nan, START + 2, 3)]),
            lambda: store.link_metrics(self.run, self.model.model_id, self.points()[-2:-1], ("ü", "digest")),
            lambda: store.tag_model(self.model.model_id, {"task": "ü"}),
            lambda: store.untag_model(self.model.model_id, "task"),
            lambda: store.untag_model(self.model.model_id, "none"),
            lambda: store.tag_model(self.model.model_id, {"ü key": "x", "kept": "y"}),
            lambda: store.untag_model(self.model.model_id, "ü key"),
            lambda: store.add_model_params(self.model.model_id, {f"q{number:03}": "x" for number in range(150)}),
            lambda: store.add_model_params(self.model.model_id, {f"q{number:03}": "x" for number in range(150)}),
            lambda: store.add_model_params(self.model.model_id, {"q001": "another value"}),
            lambda: store.get_model(self.model.model_id).ready,
            lambda: store.get_model("m-" + "0" * 32),
            lambda: store.add_input(self.other, self.model.model_id),
            self.fail_a_model,
            lambda: store.log_dataset(self.run, Dataset("tagged", "d", "local", "{}", context="c", tags={"k": "ü"})),
            lambda: store.register_model(self.name, {"first": "ü"}, "described"),
            lambda: store.register_model(self.name),
            lambda: store.describe_registered_model(self.name, "described again"),
            lambda: store.describe_registered_model("no such model", "nothing"),
            lambda: store.tag_registered_model(self.name, {"a": "1", "gone": "2"}),
            lambda: store.untag_registered_model(self.name, "gone"),
            lambda: store.tag_registered_model("no such model", {"a": "1"}),
            self.create_versions,
            lambda: store.set_alias(self.name, "champion", "2"),
            lambda: store.set_alias(self.name, "champion", "1"),
            lambda: store.set_alias(self.name, "no version", "99"),
            lambda: store.set_alias(self.name, "dropped", "1"),
            lambda: store.drop_alias(self.name, "dropped"),
            lambda: store.drop_alias("no such model", "dropped"),
            lambda: store.find_versions(self.name, self.run, "record"),
            lambda: store.find_versions(self.name, self.run, "none"),
            lambda: store.delete_version(self.name, "3"),
            lambda: store.aliases(self.name),
            lambda: store.aliases("no such model"),
            lambda: self.name in store.model_names(),
            lambda: store.tag_version(self.name, "1", {"ü": "ß", "empty": ""}),
            lambda: store.tag_version(self.name, "99", {"a": "b"}),
            lambda: store.tag_version(self.name, "1", {"gone": "x"}),
            lambda: store.untag_version(self.name, "1", "gone"),
            lambda: store.untag_version(self.name, "99", "gone"),
            lambda: store.describe_version(self.name, "1", "# what it is\n\n| ü |\n"),
            lambda: store.describe_version(self.name, "99", "nothing"),
            lambda: store.version(self.name, "1"),
            lambda: store.version(self.name, "99"),
            lambda: store.versions(self.name),
            lambda: store.versions("no such model"),
            lambda: store.versions("it's none"),
            lambda: store.model_points(self.model.model_id),
            lambda: store.model_points("m-none"),
            self.delete_another_model,
            lambda: store.set_terminated(self.run, "FAILED", START + 5000),
            lambda: store.set_running(self.run),
            lambda: store.set_terminated(self.run, "FINISHED", START + 9000),
            lambda: store.run(self.run),
            lambda: store.delete_run(self.other),
            lambda: store.check_active(self.other),
            lambda: store.log_batch(self.other, Batch(tags={"a": "b"})),
            lambda: store.run("0" * 32),
            self.deleted_experiment,
        ]  # fmt: skip

    def points(self) -> list[Point]:
        values = [0.5, math.nan, math.inf, -math.inf, 1e-320, 1.7976931348623157e308, -0.0, 0.1 + 0.2]
        return [
            *(Point("loss", value, START + step, step) for step, value in enumerate(values)),
            Point("eval/f1 macro", 1.0, START, -3),
            Point("system/cpu", 2.0, START, 2**40),
        ]

    def params(self) -> dict[str, str]:
        return {"lr": "0.1", "empty": "", "text": "ü\n\t'\"\\", "long": "y" * 5000} | {
            f"p{n}": str(n) for n in range(96)
        }

    def dataset(self, name: str, context: str) -> Dataset:
        return Dataset(name, "digest", "local", '{"uri": "/ü"}', '{"mlflow_colspec": []}', '{"num_rows": 3}', context)

    def experiment_id(self) -> None:
        self.experiment = self.store.experiment_id(self.name)

    def experiment_id_again(self) -> bool:
        return self.store.experiment_id(self.name) == self.experiment

    def create_runs(self) -> None:
        tags = {RUN_KEY_TAG: "key", "mlflow.user": "me", "mlflow.source.name": "ü.py"}
        self.run = self.store.create_run(self.experiment, start_time=START, tags=tags, run_name="a name")
        self.other = self.store.create_run(self.experiment, start_time=START + 1, tags={}, run_name="other")

    def create_model(self) -> object:
        self.model = self.store.create_model(
            self.experiment,
            name="model",
            run_id=self.run,
            tags={RECORD_TAG: "record"},
            params={f"p{number:03}": str(number) for number in range(250)},
            model_type="classifier",
        )
        return self.model.ready, self.model.tags

    def fail_a_model(self) -> object:
        alone = self.store.create_model(self.experiment, name="alone", run_id=None, tags={}, params={}, model_type=None)
        self.store.finish_model(alone.model_id, "FAILED")
        ready = self.store.get_model(alone.model_id).ready
        self.store.delete_model(alone.model_id)
        return ready

    def create_versions(self) -> None:
        tags = {RECORD_TAG: "record", "task": "sentiment"}
        self.store.create_version(self.name, model=self.model, run_id=self.run, tags=tags)
        self.store.create_version_of_artifacts(self.name, run_id=self.run, place="folder/model", tags=tags)
        self.store.create_version_of_artifacts(self.name, run_id=self.run, place="folder/is it?/model", tags={})
        source = f"{self.store.run(self.run).artifact_uri}/folder/model"
        made = self.store.create_version_of_uri(self.name, source=source, run_id=self.run, tags={})
        self.store.delete_version(self.name, made.version)

    def delete_another_model(self) -> None:
        another = self.store.create_model(
            self.experiment, name="twin", run_id=self.run, tags={RECORD_TAG: "twin"}, params={}, model_type=None
        )
        self.store.delete_model(another.model_id)

    def deleted_experiment(self) -> str:
        gone = f"{self.name} gone"
        experiment_id = self.store.experiment_id(gone)
        MlflowClient(self.store.shown_uri).delete_experiment(experiment_id)
        return self.store.experiment_id(gone)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except DeliveryError as error:
        # MLflow's client checks some arguments itself, without an error code, and keeps the driver's name.
        return type(error).__name__, re.sub(r"^[A-Z_]+: |\(sqlite3\.\w+\) ", "", str(error))


def content(client: MlflowClient, experiment_id: str, name: str, downloads: Path) -> dict[str, Any]:
    """Return all that the server has of an experiment and a registered model."""
    runs = client.search_runs([experiment_id], run_view_type=ViewType.ALL, order_by=["attributes.start_time ASC"])
    stored = [client.get_run(run.info.run_id) for run in runs]
    model = client.get_registered_model(name)
    versions = [client.get_model_version(name, str(number)) for number in (1, 2)]
    return {
        "experiment": dict(client.get_experiment(experiment_id)),
        "runs": [run.to_dictionary() for run in stored],
        "histories": {
            f"{number} {key}": [point.to_dictionary() for point in client.get_metric_history(run.info.run_id, key)]
            for number, run in enumerate(stored)
            for key in run.data.metrics
        },
        "artifacts": [artifacts(client, run.info.run_id, downloads / str(number)) for number, run in enumerate(stored)],
        "logged models": [found.to_dictionary() for found in client.search_logged_models([experiment_id])],
        "registered model": {**dict(model), "latest_versions": []},
        "versions": [dict(version) for version in versions],
    }


def artifacts(client: MlflowClient, run_id: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    for found in client.list_artifacts(run_id):
        client.download_artifacts(run_id, found.path, str(folder))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SET_BY_THE_SERVER = ("creation_time", "creation_timestamp", "last_update_time", "last_updated_timestamp")


def normal(found: object, names: dict[str, str]) -> object:
    """Return `found` with ids by what they name, without the server's own times, and comparable where it holds NaN."""
    if hasattr(found, "_asdict"):
        found = found._asdict()
    if isinstance(found, dict):
        told = {key: value for key, value in found.items() if key not in SET_BY_THE_SERVER}
        told |= {"experiment_id": "EXPERIMENT"} if "experiment_id" in told else {}
        return {normal(key, names): normal(value, names) for key, value in told.items()}
    if isinstance(found, (list, tuple)):
        return [normal(one, names) for one in found]
    if isinstance(found, bytes):
        return found
    text = repr(found)
    for before, after in names.items():
        text = text.replace(before, after)
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "files"
    (place / "model" / "data").mkdir(parents=True)
    (place / "model" / "MLmodel").write_text("flavors: {}\n")
    (place / "model" / "data" / ODD).write_bytes(bytes(range(256)))
    (place / "empty").touch()
    (place / ODD).write_text("ü")
    (place / "large.bin").write_bytes(b"0123456789" * 200_000)
    return place


def test_both_stores_leave_the_same_in_the_server(server, client, folder, tmp_path, monkeypatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "30")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, server.uri)
    through_client = MlflowStore(server.uri)
    stores = {"client": through_client, "rest": RestStore(server.uri, None, through_client)}
    outcomes, contents = {}, {}
    for way, store in stores.items():
        calls = Calls(store, f"contract {tmp_path.name} {way}", folder)
        results = [outcome(call) for call in calls.list()]
        names = {
            calls.name: "NAME", calls.run: "RUN", calls.other: "OTHER", calls.model.model_id: "MODEL",
            f"/{calls.experiment}/": "/EXPERIMENT/", f":/{calls.experiment}'": ":/EXPERIMENT'",
        }  # fmt: skip
        outcomes[way] = normal(results, names)
        contents[way] = normal(content(client, calls.experiment, calls.name, tmp_path / way), names)

    run = contents["client"]["'runs'"][0]
    assert (len(run["'data'"]["'metrics'"]), len(run["'data'"]["'params'"])) == (3, 100)
    assert len(outcomes["rest"]) == len(Calls(stores["rest"], "", folder).list())
    for mine, theirs in zip(outcomes["rest"], outcomes["client"], strict=True):
        assert mine == theirs
    for part, found in contents["client"].items():
        assert contents["rest"][part] == found, part
    for path in (f"'deep/er/{ODD}/empty'", f"'folder/model/data/{ODD}'", "'large.bin'"):
        assert path in contents["rest"]["'artifacts'"][0]


@pytest.mark.parametrize("name", ["que?stion.txt", "semi;colon", "a b", "100%", "new\nline", "back\\slash", "#hash"])
def test_a_file_is_stored_under_its_exact_name_or_refused(name, server, client, tmp_path, monkeypatch) -> None:
    """MLflow's own client stores the first one as ``que`` and the last one nowhere, and says nothing."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    store = RestStore(server.uri, None, MlflowStore(server.uri))
    run_id = store.create_run(store.experiment_id("names"), start_time=START, tags={}, run_name=None)
    (tmp_path / name).write_text("content")
    try:
        store.log_artifact(run_id, tmp_path / name, None)
    except Refused:
        assert [found.path for found in client.list_artifacts(run_id)] == []
    else:
        assert [found.path for found in client.list_artifacts(run_id)] == [name]
