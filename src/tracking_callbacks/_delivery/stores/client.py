"""The MLflow adapter: the only file that talks to a server. Every failure leaves it as a `DeliveryError`."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tracking_callbacks._delivery.backoff import retry_transient
from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import Blocked, Refused, Transient
from tracking_callbacks._delivery.stores.cached_clients import forget_clients
from tracking_callbacks._delivery.stores.local_store import ensure_sqlite_store
from tracking_callbacks._delivery.stores.translation import ALREADY_THERE, REQUEST_TIMEOUT_VARIABLE, translate_errors
from tracking_callbacks._journal.handover import TRACKING_URI_VARIABLE
from tracking_callbacks._journal.records import Dataset
from tracking_callbacks._values.secrets import mask_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["MlflowStore"]

RUN_KEY_TAG = "tracking_callbacks.run_key"
SESSION_TAG = "tracking_callbacks.session"
RECORD_TAG = "tracking_callbacks.record"
TABLES_TAG = "mlflow.loggedArtifacts"  # undocumented: mlflow.utils.mlflow_tags, MLflow 3.17.2

_TIMEOUT_SECONDS = 30


class MlflowStore:
    """One MLflow store. It imports MLflow in `load` or at the first call, and connects at the first call.

    Args:
        uri: Tracking URI, with its credentials.
        registry_uri: URI of the model registry, with its credentials. None means the tracking store's registry.

    Attributes:
        shown_uri: The tracking URI with its credentials masked.
    """

    def __init__(self, uri: str, registry_uri: str | None = None) -> None:
        self._uri = uri
        self._registry_uri = registry_uri or uri
        self.shown_uri = mask_uri(uri)
        self._connected: MlflowClient | None = None
        self._connecting = threading.Lock()
        _prepare_environment(uri, registry_uri or "")

    def load(self) -> None:
        """Import what the calls need. Call this from one thread before several threads use the store."""
        for module in ("mlflow", "requests", "sqlalchemy.exc", "urllib3.exceptions"):
            importlib.import_module(module)

    def renew(self) -> None:
        """Use the credentials that the environment holds by now."""
        uri = os.environ[TRACKING_URI_VARIABLE]
        with self._connecting:
            if self._registry_uri == self._uri:
                self._registry_uri = uri
            self._uri = uri
            self._connected = None
        forget_clients()

    # -- runs --------------------------------------------------------------------------------------------------------

    @retry_transient
    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment `name`, and create it if it does not exist."""
        from mlflow.exceptions import MlflowException

        with translate_errors(self.shown_uri):
            client = self._client()
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return str(client.create_experiment(name))
                except MlflowException as error:
                    experiment = client.get_experiment_by_name(name)
                    if error.error_code not in ALREADY_THERE or experiment is None:
                        raise  # otherwise another trainer has just created it
        if experiment.lifecycle_stage != "active":
            raise Blocked(f"experiment {name!r} is deleted; restore it (mlflow experiments restore) to go on")
        return str(experiment.experiment_id)

    @retry_transient
    def check_experiment(self, experiment_id: str) -> str:
        """Return `experiment_id` if the store has an experiment of this id.

        Raises:
            Blocked: It has none.
        """
        try:
            with translate_errors(self.shown_uri):
                self._client().get_experiment(experiment_id)
        except Refused as error:
            raise Blocked(
                f"there is no experiment with the id {experiment_id!r}, which mlflow.set_experiment or "
                f"MLFLOW_EXPERIMENT_ID has chosen ({error})"
            ) from error
        return experiment_id

    def create_run(self, experiment_id: str, *, start_time: int, tags: dict[str, str], run_name: str | None) -> str:
        """Create a run and return its id."""
        with translate_errors(self.shown_uri):
            run = self._client().create_run(experiment_id, start_time, tags, run_name)
            return str(run.info.run_id)

    @retry_transient
    def find_runs(self, experiment_id: str, run_key: str) -> list[str]:
        """Return the ids of the active runs that carry `run_key`, oldest first."""
        with translate_errors(self.shown_uri):
            runs = self._client().search_runs(
                [experiment_id],
                filter_string=f"tags.`{RUN_KEY_TAG}` = '{run_key}'",
                order_by=["attributes.start_time ASC"],
            )
            return [str(run.info.run_id) for run in runs]

    @retry_transient
    def run(self, run_id: str) -> Run:
        """Return a run with its params, tags and last metrics."""
        with translate_errors(self.shown_uri):
            return self._client().get_run(run_id)

    def delete_run(self, run_id: str) -> None:
        """Delete a run that was created twice."""
        with translate_errors(self.shown_uri):
            self._client().delete_run(run_id)

    def check_active(self, run_id: str) -> Run:
        """Return the run if it can be written to.

        Raises:
            Blocked: The run was deleted. The store answers a write to it with the same status as a bad name.
        """
        run = self.run(run_id)
        if run.info.lifecycle_stage != "active":
            raise Blocked(f"run {run_id} is deleted; restore it (mlflow runs restore) to go on")
        return run

    @retry_transient
    def set_running(self, run_id: str) -> None:
        """Make an ended run RUNNING again."""
        with translate_errors(self.shown_uri):
            self._client().update_run(run_id, status="RUNNING")

    @retry_transient
    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        """End a run with its true status and end time (ms since the epoch)."""
        with translate_errors(self.shown_uri):
            self._client().set_terminated(run_id, status, end_time)

    @retry_transient
    def log_batch(self, run_id: str, batch: Batch) -> None:
        """Log one batch."""
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
        """Delete a tag of a run, if it has it."""
        if name in self.run(run_id).data.tags:
            with translate_errors(self.shown_uri):
                self._client().delete_tag(run_id, name)

    def last_step(self, run_id: str) -> int:
        """Return the highest step of the run's metrics, those of the system apart; 0 if there are none."""
        # Undocumented (MLflow 3.17.2): `data.metrics` has the values without their steps.
        latest = self.run(run_id).data._metric_objs
        return max((metric.step for metric in latest if not metric.key.startswith("system/")), default=0)

    @retry_transient
    def history(self, run_id: str, key: str) -> list[Point]:
        """Return all points of a metric, sorted by time and step."""
        with translate_errors(self.shown_uri):
            found = self._client().get_metric_history(run_id, key)
            return sorted((Point(one.key, one.value, one.timestamp, one.step) for one in found), key=_time_and_step)

    # -- files and datasets ------------------------------------------------------------------------------------------

    @retry_transient
    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        """Upload a file."""
        with translate_errors(self.shown_uri):
            self._client().log_artifact(run_id, str(path), artifact_path)

    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        """Upload the content of a folder."""
        try:
            with translate_errors(self.shown_uri):
                self._client().log_artifacts(run_id, str(folder), artifact_path)
        except Transient as error:
            if not error.retry_now:
                raise
            for path, place in _files_below(folder):
                self.log_artifact(run_id, path, "/".join(filter(None, (artifact_path, place))) or None)

    @retry_transient
    def declare_table(self, run_id: str, place: str) -> None:
        """Make the UI show a file as a table, as ``mlflow.log_table`` does; a replay changes nothing."""
        try:
            tables = json.loads(self.run(run_id).data.tags.get(TABLES_TAG, "[]"))
        except ValueError as error:
            raise Refused(f"the run's tag {TABLES_TAG} is not valid JSON") from error
        table = {"path": place, "type": "table"}
        if table not in tables:
            with translate_errors(self.shown_uri):
                self._client().set_tag(run_id, TABLES_TAG, json.dumps([*tables, table]))

    @retry_transient
    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        """Record a dataset as an input of the run; a replay changes nothing."""
        from mlflow import entities

        # The tag is undocumented: mlflow.utils.mlflow_tags, MLflow 3.17.2.
        tags = [entities.InputTag("mlflow.data.context", dataset.context)] if dataset.context else []
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
    def find_models(self, experiment_id: str, record_key: str) -> list[LoggedModel]:
        """Return the logged models that former attempts made for this record, oldest first."""
        with translate_errors(self.shown_uri):
            found = self._client().search_logged_models(
                [experiment_id], filter_string=f"tags.`{RECORD_TAG}` = '{record_key}'"
            )
            return sorted(found, key=lambda model: int(model.creation_timestamp))

    def delete_model(self, model_id: str) -> None:
        """Delete a logged model that was created twice."""
        with translate_errors(self.shown_uri):
            self._client().delete_logged_model(model_id)

    def create_model(
        self,
        experiment_id: str,
        *,
        name: str,
        run_id: str,
        tags: dict[str, str],
        params: dict[str, str],
        model_type: str | None,
    ) -> LoggedModel:
        """Create a logged model in state PENDING."""
        with translate_errors(self.shown_uri):
            return self._client().create_logged_model(experiment_id, name, run_id, tags, params, model_type)

    def upload_model(self, model_id: str, folder: Path) -> None:
        """Upload a logged model's files and mark it READY."""
        try:
            with translate_errors(self.shown_uri):
                self._client().log_model_artifacts(model_id, str(folder))
        except Transient as error:
            if not error.retry_now:
                raise
            for path, place in _files_below(folder):
                self._upload_model_file(model_id, path, place)
        self._declare_ready(model_id)

    @retry_transient
    def _upload_model_file(self, model_id: str, path: Path, place: str) -> None:
        with translate_errors(self.shown_uri):
            # MlflowClient.log_model_artifact cannot put the file into a folder within the model. Undocumented
            # (MLflow 3.17.2).
            self._client()._tracking_client.log_model_artifact(model_id, str(path), place or None)

    @retry_transient
    def _declare_ready(self, model_id: str) -> None:
        with translate_errors(self.shown_uri):
            self._client().finalize_logged_model(model_id, "READY")

    @retry_transient
    def link_model(self, run_id: str, model_id: str, step: int) -> None:
        """Record a logged model as an output of the run; a replay changes nothing."""
        from mlflow.entities import LoggedModelOutput

        if self._is_output(run_id, model_id):
            return
        try:
            with translate_errors(self.shown_uri):
                self._client().log_outputs(run_id, [LoggedModelOutput(model_id, step)])
        except Refused:  # the store answers a second link with 400, IntegrityError; the first may have arrived late
            if not self._is_output(run_id, model_id):
                raise

    def _is_output(self, run_id: str, model_id: str) -> bool:
        outputs = self.run(run_id).outputs
        return any(output.model_id == model_id for output in (outputs.model_outputs if outputs else []))

    @retry_transient
    def link_metrics(self, run_id: str, model_id: str, points: Sequence[Point]) -> None:
        """Link points that the run already has to a model, by sending them again with the model's id."""
        from mlflow.entities import Metric

        with translate_errors(self.shown_uri):
            self._client().log_batch(
                run_id, metrics=[Metric(*point, model_id=model_id, run_id=run_id) for point in points]
            )

    @retry_transient
    def register_model(self, name: str) -> None:
        """Create a registered model unless one of that name exists."""
        from mlflow.exceptions import MlflowException

        with translate_errors(self.shown_uri):
            try:
                self._client().create_registered_model(name)
            except MlflowException as error:
                if error.error_code not in ALREADY_THERE:
                    raise

    @retry_transient
    def find_versions(self, name: str, run_id: str, record_key: str) -> list[ModelVersion]:
        """Return the model versions that former attempts made for this record, oldest first."""
        with translate_errors(self.shown_uri):
            versions = self._client().search_model_versions(f"run_id = '{run_id}'")
            made = [one for one in versions if one.name == name and one.tags.get(RECORD_TAG) == record_key]
            return sorted(made, key=lambda version: int(version.version))

    def delete_version(self, name: str, version: str) -> None:
        """Delete a model version that was created twice."""
        with translate_errors(self.shown_uri):
            self._client().delete_model_version(name, version)

    def create_version_of_artifacts(self, name: str, *, run_id: str, place: str, tags: dict[str, str]) -> ModelVersion:
        """Create a model version from the folder `place` of a run's artifacts, as ``runs:/<run id>/<place>`` does."""
        with translate_errors(self.shown_uri):
            from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

            source = RunsArtifactRepository.get_underlying_uri(f"runs:/{run_id}/{place}", self._uri)
            return self._client().create_model_version(
                name, source=source, run_id=run_id, tags=tags, await_creation_for=0
            )

    def create_version(self, name: str, *, model_id: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
        """Create a model version from a logged model."""
        with translate_errors(self.shown_uri):
            client = self._client()
            source = f"models:/{model_id}"
            known_model_id: str | None = model_id
            if self._registry_uri != self._uri and self._registry_uri.startswith("http"):
                # A registry server looks a model id up in its own tracking store, which does not have it.
                source, known_model_id = client.get_logged_model(model_id).artifact_location, None
            return client.create_model_version(
                name, source=source, run_id=run_id, tags=tags, await_creation_for=0, model_id=known_model_id
            )

    @retry_transient
    def tag_model(self, model_id: str, tags: dict[str, str]) -> None:
        """Set tags of a logged model."""
        with translate_errors(self.shown_uri):
            self._client().set_logged_model_tags(model_id, tags)

    @retry_transient
    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point `alias` of a registered model at `version`."""
        with translate_errors(self.shown_uri):
            self._client().set_registered_model_alias(name, alias, version)

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


def _files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file at any depth with its ``/``-separated parent folder, which is empty for `folder` itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place = path.parent.relative_to(folder).as_posix()
            yield path, "" if place == "." else place
