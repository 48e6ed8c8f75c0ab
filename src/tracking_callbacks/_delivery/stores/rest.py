"""A store that is reached over MLflow's REST API, without MLflow: an MLflow server of any version from 2.0 on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.stores.connection import Connection
from tracking_callbacks._delivery.stores.direct_files import DirectFiles
from tracking_callbacks._delivery.stores.proxied_files import is_proxied, upload
from tracking_callbacks._delivery.stores.store import (
    CONTEXT_TAG,
    RECORD_TAG,
    RUN_KEY_TAG,
    DatasetUse,
    Experiment,
    Store,
    StoredModel,
    StoredRun,
    StoredVersion,
    files_below,
    model_id_in,
    names_model,
)
from tracking_callbacks._journal.handover import TRACKING_URI_VARIABLE
from tracking_callbacks._journal.records import Dataset

__all__ = ["RestStore"]

_MODEL_STATUSES = {
    "READY": "LOGGED_MODEL_READY",
    "FAILED": "LOGGED_MODEL_UPLOAD_FAILED",
    "PENDING": "LOGGED_MODEL_PENDING",
}


class RestStore(Store):
    """One MLflow server, and perhaps another one as its registry.

    Args:
        uri: The tracking server, with its credentials.
        registry_uri: The server of the model registry, with its credentials. None means the same one.
        direct: Uploads files to places that the server does not proxy.
    """

    def __init__(self, uri: str, registry_uri: str | None, direct: DirectFiles) -> None:
        self._server = Connection(uri)
        self._registry = self._server
        if registry_uri is not None and registry_uri != uri:
            self._registry = Connection(registry_uri)
        self._registry_uri = registry_uri or uri
        self._direct = direct
        self._artifact_uris: dict[str, str] = {}
        self.shown_uri = self._server.shown_uri

    def load(self) -> None:
        pass

    def mlflow_version(self) -> str:
        return self._server.version()

    def renew(self) -> None:
        self._server.renew(os.environ[TRACKING_URI_VARIABLE])
        if self._registry is not self._server:
            self._registry.renew(self._registry_uri)
        self._direct.renew()

    # -- runs --------------------------------------------------------------------------------------------------------

    def find_experiment(self, name: str) -> Experiment | None:
        self._server.check_workspace()
        try:
            return self._server.get("experiments/get-by-name", _ExperimentAnswer, experiment_name=name).value()
        except Refused as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def create_experiment(self, name: str, artifact_location: str | None, tags: Mapping[str, str]) -> str:
        body: dict[str, Any] = {"name": name, "tags": _pairs(tags)}
        if artifact_location is not None:
            body["artifact_location"] = artifact_location
        return self._server.repeat("POST", "experiments/create", _Experiment, body).experiment_id

    def get_experiment(self, experiment_id: str) -> Experiment:
        self._server.check_workspace()
        return self._server.get("experiments/get", _ExperimentAnswer, experiment_id=experiment_id).value()

    def create_run(self, experiment_id: str, *, start_time: int, tags: dict[str, str], run_name: str | None) -> str:
        body = {"experiment_id": experiment_id, "start_time": start_time, "tags": _pairs(tags)}
        body["user_id"] = tags.get("mlflow.user", "unknown")
        if run_name is not None:
            body["run_name"] = run_name
        return self._server.call("POST", "runs/create", _RunAnswer, body).run.info.run_id

    def find_runs(self, experiment_id: str, run_key: str) -> list[str]:
        body = {
            "experiment_ids": [experiment_id],
            "filter": f"tags.`{RUN_KEY_TAG}` = '{run_key}'",
            "run_view_type": "ACTIVE_ONLY",
            "order_by": ["attributes.start_time ASC"],
            "max_results": 1000,
        }
        return [run.info.run_id for run in self._server.repeat("POST", "runs/search", _Runs, body).runs]

    def run(self, run_id: str) -> StoredRun:
        found = self._server.get("runs/get", _RunAnswer, run_id=run_id, run_uuid=run_id).run
        self._artifact_uris[run_id] = found.info.artifact_uri
        return StoredRun(
            run_id=run_id,
            experiment_id=found.info.experiment_id,
            active=found.info.lifecycle_stage == "active",
            start_time=found.info.start_time,
            artifact_uri=found.info.artifact_uri,
            params=_mapping(found.data.params),
            tags=_mapping(found.data.tags),
            metrics=[metric.point() for metric in found.data.metrics],
            models=[output.model_id for output in found.outputs.model_outputs],
            datasets=[one.value() for one in found.inputs.dataset_inputs],
            ended=None if found.info.status in ("RUNNING", "SCHEDULED") else found.info.end_time,
        )

    def delete_run(self, run_id: str) -> None:
        self._server.call("POST", "runs/delete", _Nothing, {"run_id": run_id})

    def set_running(self, run_id: str) -> None:
        self._update_run(run_id, status="RUNNING")

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self._update_run(run_id, status=status, end_time=end_time)

    def _update_run(self, run_id: str, **changed: str | int) -> None:
        self._server.repeat("POST", "runs/update", _Nothing, {"run_id": run_id, "run_uuid": run_id} | changed)

    def log_batch(self, run_id: str, batch: Batch) -> None:
        body: dict[str, object] = {"run_id": run_id}
        if batch.metrics:
            body["metrics"] = [_metric(point) for point in batch.metrics]
        if batch.params:
            body["params"] = _pairs(batch.params)
        if batch.tags:
            body["tags"] = _pairs(batch.tags)
        self._server.repeat("POST", "runs/log-batch", _Nothing, body)

    def delete_tag(self, run_id: str, name: str) -> None:
        if name in self.run(run_id).tags:
            self._server.repeat("POST", "runs/delete-tag", _Nothing, {"run_id": run_id, "key": name})

    def history(self, run_id: str, key: str, *, whole: bool = True) -> list[Point]:
        points: list[Point] = []
        query = {"run_id": run_id, "run_uuid": run_id, "metric_key": key, "max_results": "25000"}
        while True:
            page = self._server.get("metrics/get-history", _History, **query)
            points += [metric.point() for metric in page.metrics]
            if not page.next_page_token or not whole:
                return sorted(points, key=lambda point: (point.timestamp, point.step))
            query["page_token"] = page.next_page_token

    # -- files and datasets ------------------------------------------------------------------------------------------

    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        root = self._artifact_uri(run_id)
        if is_proxied(root):
            upload(self._server, _below(root, artifact_path), path)
        else:
            self._direct.log_artifact(run_id, path, artifact_path)

    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        root = self._artifact_uri(run_id)
        if is_proxied(root):
            self._upload_folder(_below(root, artifact_path), folder)
        else:
            self._direct.log_artifacts(run_id, folder, artifact_path)

    def _artifact_uri(self, run_id: str) -> str:
        if run_id not in self._artifact_uris:
            self.run(run_id)
        return self._artifact_uris[run_id]

    def _upload_folder(self, root: str, folder: Path) -> None:
        for path, place in files_below(folder):
            upload(self._server, _below(root, place), path)

    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        described = {
            "name": dataset.name,
            "digest": dataset.digest,
            "source_type": dataset.source_type,
            "source": dataset.source,
            "schema": dataset.schema,
            "profile": dataset.profile,
        }
        entry: dict[str, object] = {"dataset": {name: text for name, text in described.items() if text is not None}}
        if tags := dataset.tags | ({CONTEXT_TAG: dataset.context} if dataset.context else {}):
            entry["tags"] = _pairs(tags)
        self._server.repeat("POST", "runs/log-inputs", _Nothing, {"run_id": run_id, "datasets": [entry]})

    # -- models ------------------------------------------------------------------------------------------------------

    def find_models(self, experiment_id: str, record_key: str) -> list[StoredModel]:
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`{RECORD_TAG}` = '{record_key}'"}
        found = self._server.repeat("POST", "logged-models/search", _Models, body).models
        return sorted((model.value() for model in found), key=lambda model: model.created)

    def delete_model(self, model_id: str) -> None:
        self._server.call("DELETE", f"logged-models/{model_id}", _Nothing)

    def create_model(
        self,
        experiment_id: str,
        *,
        name: str,
        run_id: str | None,
        tags: dict[str, str],
        params: dict[str, str],
        model_type: str | None,
    ) -> StoredModel:
        body = {
            "experiment_id": experiment_id,
            "name": name,
            "params": _pairs(params),
            "tags": _pairs(tags),
        }
        if run_id is not None:
            body["source_run_id"] = run_id
        if model_type is not None:
            body["model_type"] = model_type
        return self._server.call("POST", "logged-models", _ModelAnswer, body).model.value()

    def model_params(self, model_id: str) -> dict[str, str]:
        return _mapping(self._server.get(f"logged-models/{model_id}", _ModelAnswer).model.data.params)

    def log_model_params(self, model_id: str, params: dict[str, str]) -> None:
        body = {"model_id": model_id, "params": _pairs(params)}
        self._server.call("POST", f"logged-models/{model_id}/params", _Nothing, body)

    def get_model(self, model_id: str) -> StoredModel:
        return self._server.get(f"logged-models/{model_id}", _ModelAnswer).model.value()

    def upload_model_files(self, model: StoredModel, folder: Path) -> None:
        if is_proxied(model.artifact_uri):
            self._upload_folder(model.artifact_uri, folder)
        else:
            self._direct.log_model_artifacts(model.model_id, folder)

    def finish_model(self, model_id: str, status: str) -> None:
        body = {"model_id": model_id, "status": _MODEL_STATUSES[status]}
        self._server.repeat("PATCH", f"logged-models/{model_id}", _Nothing, body)

    def untag_model(self, model_id: str, key: str) -> None:
        self._server.repeat("DELETE", f"logged-models/{model_id}/tags/{quote(key, safe='')}", _Nothing)

    def add_input(self, run_id: str, model_id: str) -> None:
        body = {"run_id": run_id, "models": [{"model_id": model_id}]}
        self._server.repeat("POST", "runs/log-inputs", _Nothing, body)

    def add_output(self, run_id: str, model_id: str, step: int) -> None:
        body = {"run_id": run_id, "models": [{"model_id": model_id, "step": step}]}
        self._server.repeat("POST", "runs/outputs", _Nothing, body)

    def link_metrics(
        self, run_id: str, model_id: str, points: Sequence[Point], dataset: tuple[str, str] | None = None
    ) -> None:
        used = {} if dataset is None else {"dataset_name": dataset[0], "dataset_digest": dataset[1]}
        linked = [_metric(point) | {"model_id": model_id, "run_id": run_id} | used for point in points]
        self._server.repeat("POST", "runs/log-batch", _Nothing, {"run_id": run_id, "metrics": linked})

    def tag_model(self, model_id: str, tags: dict[str, str]) -> None:
        self._server.repeat("PATCH", f"logged-models/{model_id}/tags", _Nothing, {"tags": _pairs(tags)})

    # -- the registry ------------------------------------------------------------------------------------------------

    def create_registered_model(
        self, name: str, tags: dict[str, str] | None = None, description: str | None = None
    ) -> None:
        body: dict[str, object] = {"name": name, "tags": _pairs(tags or {})}
        if description is not None:
            body["description"] = description
        self._registry.repeat("POST", "registered-models/create", _Nothing, body)

    def describe_registered_model(self, name: str, description: str) -> None:
        body = {"name": name, "description": description}
        self._registry.repeat("PATCH", "registered-models/update", _Nothing, body)

    def tag_registered_model(self, name: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            body = {"name": name, "key": key, "value": value}
            self._registry.repeat("POST", "registered-models/set-tag", _Nothing, body)

    def untag_registered_model(self, name: str, key: str) -> None:
        self._registry.repeat("DELETE", "registered-models/delete-tag", _Nothing, {"name": name, "key": key})

    def untag_version(self, name: str, version: str, key: str) -> None:
        body = {"name": name, "version": version, "key": key}
        self._registry.repeat("DELETE", "model-versions/delete-tag", _Nothing, body)

    def drop_alias(self, name: str, alias: str) -> None:
        self._registry.repeat("DELETE", "registered-models/alias", _Nothing, {"name": name, "alias": alias})

    def find_versions(self, name: str, run_id: str, record_key: str) -> list[StoredVersion]:
        found = self._search_versions(f"run_id = '{run_id}'")
        return [one for one in found if one.name == name and one.tags.get(RECORD_TAG) == record_key]

    def _search_versions(self, expression: str) -> list[StoredVersion]:
        found: list[StoredVersion] = []
        query = {"filter": expression, "max_results": "10000"}
        while True:
            page = self._registry.get("model-versions/search", _Versions, **query)
            found += [version.value() for version in page.model_versions]
            if not page.next_page_token:
                return sorted(found, key=lambda version: int(version.version))
            query["page_token"] = page.next_page_token

    def delete_version(self, name: str, version: str) -> None:
        self._registry.call("DELETE", "model-versions/delete", _Nothing, {"name": name, "version": version})

    def create_version(self, name: str, *, model: StoredModel, run_id: str, tags: dict[str, str]) -> StoredVersion:
        if self._registry is not self._server:
            # A registry server looks a model id up in its own tracking store, which does not have it.
            return self._create_version(name, model.artifact_uri, run_id, tags)
        return self._create_version(name, f"models:/{model.model_id}", run_id, tags, model_id=model.model_id)

    def create_version_of_artifacts(self, name: str, *, run_id: str, place: str, tags: dict[str, str]) -> StoredVersion:
        return self._create_version(name, _below(self._artifact_uri(run_id), place), run_id, tags)

    def create_version_of_uri(self, name: str, *, source: str, run_id: str, tags: dict[str, str]) -> StoredVersion:
        return self._create_version(name, source, run_id, tags)

    def _create_version(self, name: str, source: str, run_id: str, tags: dict[str, str], **more: str) -> StoredVersion:
        body = {"name": name, "source": source, "run_id": run_id, "tags": _pairs(tags)} | more
        return self._registry.call("POST", "model-versions/create", _VersionAnswer, body).model_version.value()

    def set_alias(self, name: str, alias: str, version: str) -> None:
        body = {"name": name, "alias": alias, "version": version}
        self._registry.repeat("POST", "registered-models/alias", _Nothing, body)

    def model_names(self) -> list[str]:
        names: list[str] = []
        query = {"max_results": "1000"}
        while True:
            page = self._registry.get("registered-models/search", _RegisteredModels, **query)
            names += [model.name for model in page.registered_models]
            if not page.next_page_token:
                return sorted(names)
            query["page_token"] = page.next_page_token

    def aliases(self, name: str) -> dict[str, str]:
        found = self._registry.get("registered-models/get", _RegisteredModelAnswer, name=name).registered_model
        return {one.alias: one.version for one in found.aliases}

    def version(self, name: str, version: str) -> StoredVersion:
        return self._registry.get(
            "model-versions/get", _VersionAnswer, name=name, version=version
        ).model_version.value()

    def versions(self, name: str) -> list[StoredVersion]:
        return self._search_versions(names_model(name))

    def tag_version(self, name: str, version: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            body = {"name": name, "version": version, "key": key, "value": value}
            self._registry.repeat("POST", "model-versions/set-tag", _Nothing, body)

    def describe_version(self, name: str, version: str, description: str) -> None:
        body = {"name": name, "version": version, "description": description}
        self._registry.repeat("PATCH", "model-versions/update", _Nothing, body)

    def model_points(self, model_id: str) -> list[Point]:
        found = self._server.get(f"logged-models/{model_id}", _ModelAnswer).model
        return [metric.point() for metric in found.data.metrics]


def _below(root: str, place: str | None) -> str:
    return f"{root.rstrip('/')}/{place}" if place and place != "." else root


def _pairs(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": text} for key, text in texts.items()]


def _metric(point: Point) -> dict[str, object]:
    # JSON has no numbers for these: https://protobuf.dev/programming-guides/json/
    value = point.value
    shown = value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return {"key": point.key, "value": shown, "timestamp": point.timestamp, "step": point.step}


# What the server answers, as far as delivery uses it: https://mlflow.org/docs/latest/api_reference/rest-api.html


class _Nothing(msgspec.Struct):
    pass


class _Pair(msgspec.Struct):
    key: str
    value: str = ""


def _mapping(pairs: Iterable[_Pair]) -> dict[str, str]:
    return {pair.key: pair.value for pair in pairs}


class _Metric(msgspec.Struct):
    key: str
    value: float = 0.0
    timestamp: int = 0
    step: int = 0

    def point(self) -> Point:
        return Point(self.key, self.value, self.timestamp, self.step)


class _Experiment(msgspec.Struct):
    experiment_id: str
    lifecycle_stage: str = "active"


class _ExperimentAnswer(msgspec.Struct):
    experiment: _Experiment

    def value(self) -> Experiment:
        return Experiment(self.experiment.experiment_id, self.experiment.lifecycle_stage == "active")


class _RunInfo(msgspec.Struct):
    run_id: str
    experiment_id: str
    lifecycle_stage: str = "active"
    start_time: int = 0
    artifact_uri: str = ""
    status: str = ""
    end_time: int = 0


class _RunData(msgspec.Struct):
    metrics: list[_Metric] = []
    params: list[_Pair] = []
    tags: list[_Pair] = []


class _Output(msgspec.Struct):
    model_id: str = ""


class _Outputs(msgspec.Struct):
    model_outputs: list[_Output] = []


class _DatasetInfo(msgspec.Struct):
    name: str = ""
    digest: str = ""


class _DatasetInput(msgspec.Struct):
    dataset: _DatasetInfo = msgspec.field(default_factory=_DatasetInfo)
    tags: list[_Pair] = []

    def value(self) -> DatasetUse:
        return DatasetUse(_mapping(self.tags).get(CONTEXT_TAG, ""), self.dataset.name, self.dataset.digest)


class _Inputs(msgspec.Struct):
    dataset_inputs: list[_DatasetInput] = []


class _Run(msgspec.Struct):
    info: _RunInfo
    data: _RunData = msgspec.field(default_factory=_RunData)
    outputs: _Outputs = msgspec.field(default_factory=_Outputs)
    inputs: _Inputs = msgspec.field(default_factory=_Inputs)


class _RunAnswer(msgspec.Struct):
    run: _Run


class _Runs(msgspec.Struct):
    runs: list[_Run] = []


class _History(msgspec.Struct):
    metrics: list[_Metric] = []
    next_page_token: str = ""


class _ModelInfo(msgspec.Struct):
    model_id: str
    artifact_uri: str = ""
    status: str = ""
    creation_timestamp_ms: int = 0
    tags: list[_Pair] = []


class _ModelData(msgspec.Struct):
    metrics: list[_Metric] = []
    params: list[_Pair] = []


class _Model(msgspec.Struct):
    info: _ModelInfo
    data: _ModelData = msgspec.field(default_factory=_ModelData)

    def value(self) -> StoredModel:
        info = self.info
        ready = info.status == "LOGGED_MODEL_READY"
        return StoredModel(info.model_id, ready, info.artifact_uri, _mapping(info.tags), info.creation_timestamp_ms)


class _ModelAnswer(msgspec.Struct):
    model: _Model


class _Models(msgspec.Struct):
    models: list[_Model] = []


class _Version(msgspec.Struct):
    name: str
    version: str
    tags: list[_Pair] = []
    run_id: str = ""
    model_id: str = ""
    source: str = ""
    description: str = ""

    def value(self) -> StoredVersion:
        model_id = self.model_id or model_id_in(self.source)
        return StoredVersion(self.name, self.version, _mapping(self.tags), self.run_id, model_id, self.description)


class _VersionAnswer(msgspec.Struct):
    model_version: _Version


class _Alias(msgspec.Struct):
    alias: str
    version: str


class _RegisteredModel(msgspec.Struct):
    name: str
    aliases: list[_Alias] = []


class _RegisteredModelAnswer(msgspec.Struct):
    registered_model: _RegisteredModel


class _RegisteredModels(msgspec.Struct):
    registered_models: list[_RegisteredModel] = []
    next_page_token: str = ""


class _Versions(msgspec.Struct):
    model_versions: list[_Version] = []
    next_page_token: str = ""
