"""A store that is reached through MLflow's own client: databases, files, clouds, plugins."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks._delivery.backoff import retry_transient
from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import Transient
from tracking_callbacks._delivery.stores.cached_clients import forget_clients
from tracking_callbacks._delivery.stores.direct_files import DirectFiles
from tracking_callbacks._delivery.stores.local_store import ensure_sqlite_store
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
from tracking_callbacks._delivery.stores.translation import REQUEST_TIMEOUT_VARIABLE, translate_errors
from tracking_callbacks._journal.handover import TRACKING_URI_VARIABLE
from tracking_callbacks._journal.records import Dataset
from tracking_callbacks._values.secrets import mask_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["MlflowStore"]

_TIMEOUT_SECONDS = 30


class MlflowStore(Store, DirectFiles):
    """One store behind MLflow's client. It imports MLflow in `load` or at the first call.

    Args:
        uri: Tracking URI, with its credentials.
        registry_uri: URI of the model registry, with its credentials. None means the tracking store's registry.
    """

    def __init__(self, uri: str, registry_uri: str | None = None) -> None:
        self._uri = uri
        self._registry_uri = registry_uri or uri
        self.shown_uri = mask_uri(uri)
        self._connected: MlflowClient | None = None
        self._connecting = threading.Lock()
        _prepare_environment(uri, registry_uri or "")

    def load(self) -> None:
        for module in ("mlflow", "requests", "sqlalchemy.exc", "urllib3.exceptions"):
            importlib.import_module(module)

    def mlflow_version(self) -> str:
        return importlib.metadata.version("mlflow")

    def renew(self) -> None:
        uri = os.environ[TRACKING_URI_VARIABLE]
        with self._connecting:
            if self._registry_uri == self._uri:
                self._registry_uri = uri
            self._uri = uri
            self._connected = None
        forget_clients()

    # -- runs --------------------------------------------------------------------------------------------------------

    @retry_transient
    def find_experiment(self, name: str) -> Experiment | None:
        with translate_errors(self.shown_uri):
            found = self._client().get_experiment_by_name(name)
        return None if found is None else Experiment(str(found.experiment_id), found.lifecycle_stage == "active")

    def create_experiment(self, name: str, artifact_location: str | None, tags: Mapping[str, str]) -> str:
        with translate_errors(self.shown_uri):
            return str(self._client().create_experiment(name, artifact_location, dict(tags)))

    @retry_transient
    def get_experiment(self, experiment_id: str) -> Experiment:
        with translate_errors(self.shown_uri):
            found = self._client().get_experiment(experiment_id)
        return Experiment(experiment_id, found.lifecycle_stage == "active")

    def create_run(self, experiment_id: str, *, start_time: int, tags: dict[str, str], run_name: str | None) -> str:
        with translate_errors(self.shown_uri):
            run = self._client().create_run(experiment_id, start_time, tags, run_name)
            return str(run.info.run_id)

    @retry_transient
    def find_runs(self, experiment_id: str, run_key: str) -> list[str]:
        with translate_errors(self.shown_uri):
            runs = self._client().search_runs(
                [experiment_id],
                filter_string=f"tags.`{RUN_KEY_TAG}` = '{run_key}'",
                order_by=["attributes.start_time ASC"],
            )
            return [str(run.info.run_id) for run in runs]

    @retry_transient
    def run(self, run_id: str) -> StoredRun:
        with translate_errors(self.shown_uri):
            found = self._client().get_run(run_id)
        return StoredRun(
            run_id=run_id,
            experiment_id=str(found.info.experiment_id),
            active=found.info.lifecycle_stage == "active",
            start_time=found.info.start_time or 0,
            artifact_uri=found.info.artifact_uri or "",
            params=dict(found.data.params),
            tags=dict(found.data.tags),
            # Undocumented (MLflow 3.17.2): `data.metrics` has the values without their steps and times.
            metrics=[Point(one.key, one.value, one.timestamp, one.step) for one in found.data._metric_objs],
            models=[output.model_id for output in (found.outputs.model_outputs if found.outputs else [])],
            datasets=[
                DatasetUse(
                    next((tag.value for tag in one.tags if tag.key == CONTEXT_TAG), ""),
                    one.dataset.name,
                    one.dataset.digest,
                )
                for one in (found.inputs.dataset_inputs if found.inputs else [])
            ],
            ended=None if found.info.status in ("RUNNING", "SCHEDULED") else found.info.end_time or 0,
        )

    def delete_run(self, run_id: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_run(run_id)

    @retry_transient
    def set_running(self, run_id: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().update_run(run_id, status="RUNNING")

    @retry_transient
    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        with translate_errors(self.shown_uri):
            self._client().set_terminated(run_id, status, end_time)

    @retry_transient
    def log_batch(self, run_id: str, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        with translate_errors(self.shown_uri):
            self._client().log_batch(
                run_id,
                metrics=[Metric(*point) for point in batch.metrics],
                params=[Param(*param) for param in batch.params.items()],
                tags=[RunTag(*tag) for tag in batch.tags.items()],
                synchronous=True,
            )

    @retry_transient
    def delete_tag(self, run_id: str, name: str) -> None:
        if name in self.run(run_id).tags:
            with translate_errors(self.shown_uri):
                self._client().delete_tag(run_id, name)

    @retry_transient
    def history(self, run_id: str, key: str, *, whole: bool = True) -> list[Point]:  # noqa: ARG002 - one call brings all
        with translate_errors(self.shown_uri):
            found = self._client().get_metric_history(run_id, key)
            return sorted((Point(one.key, one.value, one.timestamp, one.step) for one in found), key=_time_and_step)

    # -- files and datasets ------------------------------------------------------------------------------------------

    @retry_transient
    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        with translate_errors(self.shown_uri):
            self._client().log_artifact(run_id, str(path), artifact_path)

    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        try:
            with translate_errors(self.shown_uri):
                self._client().log_artifacts(run_id, str(folder), artifact_path)
        except Transient as error:
            if not error.retry_now:
                raise
            for path, place in files_below(folder):
                self.log_artifact(run_id, path, "/".join(filter(None, (artifact_path, place))) or None)

    @retry_transient
    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        from mlflow import entities

        texts = dataset.tags | ({CONTEXT_TAG: dataset.context} if dataset.context else {})
        tags = [entities.InputTag(key, text) for key, text in texts.items()]
        entity = entities.Dataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type=dataset.source_type,
            source=dataset.source,
            schema=dataset.schema,
            profile=dataset.profile,
        )
        with translate_errors(self.shown_uri):
            self._client().log_inputs(run_id, datasets=[entities.DatasetInput(entity, tags)])

    # -- models ------------------------------------------------------------------------------------------------------

    @retry_transient
    def find_models(self, experiment_id: str, record_key: str) -> list[StoredModel]:
        with translate_errors(self.shown_uri):
            found = self._client().search_logged_models(
                [experiment_id], filter_string=f"tags.`{RECORD_TAG}` = '{record_key}'"
            )
        return sorted(map(_stored_model, found), key=lambda model: model.created)

    def delete_model(self, model_id: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_logged_model(model_id)

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
        with translate_errors(self.shown_uri):
            return _stored_model(
                self._client().create_logged_model(experiment_id, name, run_id, tags, params, model_type)
            )

    @retry_transient
    def get_model(self, model_id: str) -> StoredModel:
        with translate_errors(self.shown_uri):
            return _stored_model(self._client().get_logged_model(model_id))

    def upload_model_files(self, model: StoredModel, folder: Path) -> None:
        self.log_model_artifacts(model.model_id, folder)

    def log_model_artifacts(self, model_id: str, folder: Path) -> None:
        try:
            with translate_errors(self.shown_uri):
                self._client().log_model_artifacts(model_id, str(folder))
        except Transient as error:
            if not error.retry_now:
                raise
            for path, place in files_below(folder):
                self._upload_model_file(model_id, path, place)

    @retry_transient
    def _upload_model_file(self, model_id: str, path: Path, place: str) -> None:
        with translate_errors(self.shown_uri):
            # MlflowClient.log_model_artifact cannot put the file into a folder within the model. Undocumented
            # (MLflow 3.13.0 to 3.17.2).
            repository: Any = self._client()._tracking_client._get_artifact_repo(model_id, resource="logged_model")
            repository.log_artifact(str(path), place or None)

    @retry_transient
    def finish_model(self, model_id: str, status: str) -> None:
        from mlflow.entities import LoggedModelStatus

        with translate_errors(self.shown_uri):
            self._client().finalize_logged_model(model_id, LoggedModelStatus(status))

    @retry_transient
    def model_params(self, model_id: str) -> dict[str, str]:
        with translate_errors(self.shown_uri):
            return dict(self._client().get_logged_model(model_id).params or {})

    def log_model_params(self, model_id: str, params: dict[str, str]) -> None:
        with translate_errors(self.shown_uri):
            self._client().log_model_params(model_id, params)

    @retry_transient
    def untag_model(self, model_id: str, key: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_logged_model_tag(model_id, key)

    @retry_transient
    def add_input(self, run_id: str, model_id: str) -> None:
        from mlflow.entities import LoggedModelInput

        with translate_errors(self.shown_uri):
            self._client().log_inputs(run_id, models=[LoggedModelInput(model_id)])

    @retry_transient
    def add_output(self, run_id: str, model_id: str, step: int) -> None:
        from mlflow.entities import LoggedModelOutput

        with translate_errors(self.shown_uri):
            self._client().log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    @retry_transient
    def link_metrics(
        self, run_id: str, model_id: str, points: Sequence[Point], dataset: tuple[str, str] | None = None
    ) -> None:
        from mlflow.entities import Metric

        with translate_errors(self.shown_uri):
            name, digest = dataset or (None, None)
            metrics = [
                Metric(*point, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run_id)
                for point in points
            ]
            self._client().log_batch(run_id, metrics=metrics)

    @retry_transient
    def create_registered_model(
        self, name: str, tags: dict[str, str] | None = None, description: str | None = None
    ) -> None:
        with translate_errors(self.shown_uri):
            self._client().create_registered_model(name, tags, description)

    @retry_transient
    def describe_registered_model(self, name: str, description: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().update_registered_model(name, description)

    @retry_transient
    def tag_registered_model(self, name: str, tags: dict[str, str]) -> None:
        with translate_errors(self.shown_uri):
            for key, value in tags.items():
                self._client().set_registered_model_tag(name, key, value)

    @retry_transient
    def untag_registered_model(self, name: str, key: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_registered_model_tag(name, key)

    @retry_transient
    def untag_version(self, name: str, version: str, key: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_model_version_tag(name, version, key)

    @retry_transient
    def drop_alias(self, name: str, alias: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_registered_model_alias(name, alias)

    @retry_transient
    def find_versions(self, name: str, run_id: str, record_key: str) -> list[StoredVersion]:
        with translate_errors(self.shown_uri):
            found = self._search_versions(f"run_id = '{run_id}'")
        return [one for one in found if one.name == name and one.tags.get(RECORD_TAG) == record_key]

    def _search_versions(self, expression: str) -> list[StoredVersion]:
        found: list[StoredVersion] = []
        token: str | None = None
        while True:
            page = self._client().search_model_versions(expression, page_token=token)
            found += map(_stored_version, page)
            if not (token := page.token):
                return sorted(found, key=lambda version: int(version.version))

    def delete_version(self, name: str, version: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().delete_model_version(name, version)

    def create_version_of_artifacts(self, name: str, *, run_id: str, place: str, tags: dict[str, str]) -> StoredVersion:
        source = self.run(run_id).artifact_uri
        if place != ".":
            from mlflow.utils.uri import append_to_uri_path  # ``runs:/…`` would lose what follows a "?" or "#"

            source = append_to_uri_path(source, place)  # type: ignore[no-untyped-call]
        return self.create_version_of_uri(name, source=source, run_id=run_id, tags=tags)

    def create_version(self, name: str, *, model: StoredModel, run_id: str, tags: dict[str, str]) -> StoredVersion:
        source = f"models:/{model.model_id}"
        known_model_id: str | None = model.model_id
        if self._registry_uri != self._uri and self._registry_uri.startswith("http"):
            # A registry server looks a model id up in its own tracking store, which does not have it.
            source, known_model_id = model.artifact_uri, None
        with translate_errors(self.shown_uri):
            return self._create_version(name, source=source, run_id=run_id, tags=tags, model_id=known_model_id)

    def create_version_of_uri(self, name: str, *, source: str, run_id: str, tags: dict[str, str]) -> StoredVersion:
        with translate_errors(self.shown_uri):
            return self._create_version(name, source=source, run_id=run_id or None, tags=tags, model_id=None)

    def _create_version(
        self, name: str, *, source: str, run_id: str | None, tags: dict[str, str], model_id: str | None
    ) -> StoredVersion:
        return _stored_version(
            self._client().create_model_version(
                name, source=source, run_id=run_id, tags=tags, await_creation_for=0, model_id=model_id
            )
        )

    @retry_transient
    def tag_model(self, model_id: str, tags: dict[str, str]) -> None:
        with translate_errors(self.shown_uri):
            self._client().set_logged_model_tags(model_id, tags)

    @retry_transient
    def set_alias(self, name: str, alias: str, version: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().set_registered_model_alias(name, alias, version)

    @retry_transient
    def model_names(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        with translate_errors(self.shown_uri):
            while True:
                page = self._client().search_registered_models(page_token=token)
                names += [model.name for model in page]
                if not (token := page.token):
                    return sorted(names)

    @retry_transient
    def aliases(self, name: str) -> dict[str, str]:
        with translate_errors(self.shown_uri):
            found = self._client().get_registered_model(name).aliases
        return {alias: str(version) for alias, version in found.items()}

    @retry_transient
    def version(self, name: str, version: str) -> StoredVersion:
        with translate_errors(self.shown_uri):
            return _stored_version(self._client().get_model_version(name, version))

    @retry_transient
    def versions(self, name: str) -> list[StoredVersion]:
        with translate_errors(self.shown_uri):
            return self._search_versions(names_model(name))

    @retry_transient
    def tag_version(self, name: str, version: str, tags: dict[str, str]) -> None:
        with translate_errors(self.shown_uri):
            for key, value in tags.items():
                self._client().set_model_version_tag(name, version, key, value)

    @retry_transient
    def describe_version(self, name: str, version: str, description: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().update_model_version(name, version, description)

    @retry_transient
    def model_points(self, model_id: str) -> list[Point]:
        with translate_errors(self.shown_uri):
            found = self._client().get_logged_model(model_id).metrics or []
        return [Point(one.key, one.value, one.timestamp, one.step) for one in found]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _client(self) -> MlflowClient:
        with self._connecting:
            if self._connected is None:
                import mlflow

                for uri in (self._uri, self._registry_uri):
                    ensure_sqlite_store(uri, os.path.abspath("mlruns"))
                # Set the global URIs too: create_model_version resolves its source through them, and would otherwise
                # leave a stray mlflow.db in the working folder. A process has only one store.
                mlflow.set_tracking_uri(self._uri)
                mlflow.set_registry_uri(self._registry_uri)
                self._connected = mlflow.MlflowClient(self._uri, self._registry_uri)
            return self._connected


def _stored_model(model: LoggedModel) -> StoredModel:
    ready = str(model.status) in ("READY", "LoggedModelStatus.READY")
    return StoredModel(
        model.model_id, ready, model.artifact_location, dict(model.tags or {}), int(model.creation_timestamp)
    )


def _stored_version(version: ModelVersion) -> StoredVersion:
    return StoredVersion(
        version.name,
        str(version.version),
        dict(version.tags or {}),
        version.run_id or "",
        getattr(version, "model_id", None) or model_id_in(version.source or ""),
        version.description or "",
    )


def _time_and_step(point: Point) -> tuple[int, int]:
    return point.timestamp, point.step


def _prepare_environment(*uris: str) -> None:
    # MLflow's own retries block for about four minutes per call; the drain loop retries instead and can react.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    if not os.environ.get(REQUEST_TIMEOUT_VARIABLE, "").isdecimal():  # MLflow raises at every call otherwise
        os.environ[REQUEST_TIMEOUT_VARIABLE] = str(_TIMEOUT_SECONDS)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if any(uri.startswith("file:") for uri in uris):
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow ≥ 3.10 refuses file stores otherwise
