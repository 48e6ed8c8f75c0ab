"""What delivery asks of a store, however it is reached. Every failure leaves a store as a `DeliveryError`."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import ALREADY_THERE, Blocked, Refused
from tracking_callbacks._journal.records import Dataset
from tracking_callbacks._values.store_uri import is_local_location

__all__ = [
    "CONTEXT_TAG",
    "MODEL_PARAMS_PER_CALL",
    "RECORD_TAG",
    "RUN_KEY_TAG",
    "SESSION_TAG",
    "DatasetUse",
    "Experiment",
    "Store",
    "StoredModel",
    "StoredRun",
    "StoredVersion",
    "files_below",
    "model_id_in",
    "names_model",
]

MODEL_PARAMS_PER_CALL = 100  # of a logged model, as in MLflow's client
_MODEL_ID = re.compile(r"\bm-[0-9a-f]{32}\b")

RUN_KEY_TAG = "tracking_callbacks.run_key"
SESSION_TAG = "tracking_callbacks.session"
RECORD_TAG = "tracking_callbacks.record"
# Undocumented: mlflow.utils.mlflow_tags, MLflow 3.17.2.
TABLES_TAG = "mlflow.loggedArtifacts"
CONTEXT_TAG = "mlflow.data.context"


class Experiment(NamedTuple):
    """An experiment; `active` is False if it is deleted."""

    experiment_id: str
    active: bool


class DatasetUse(NamedTuple):
    """A dataset that a run has used, and what for."""

    context: str
    name: str
    digest: str


class StoredRun(NamedTuple):
    """A run as the store has it.

    Attributes:
        active: False if the run is deleted.
        start_time: Milliseconds since the epoch.
        artifact_uri: Where its artifacts lie.
        metrics: The last point of each metric.
        datasets: Its datasets.
        models: Ids of the logged models that are its outputs.
        ended: When it ended, in milliseconds since the epoch; None while it runs.
    """

    run_id: str
    experiment_id: str
    active: bool
    start_time: int
    artifact_uri: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: list[Point]
    models: list[str]
    datasets: list[DatasetUse]
    ended: int | None = None


class StoredModel(NamedTuple):
    """A logged model; `ready` is True once it has all its files, and `created` is in milliseconds since the epoch."""

    model_id: str
    ready: bool
    artifact_uri: str
    tags: dict[str, str]
    created: int


class StoredVersion(NamedTuple):
    """A model version of the registry; the ids of its run and of its logged model may be empty."""

    name: str
    version: str
    tags: dict[str, str]
    run_id: str = ""
    model_id: str = ""
    description: str = ""


class Store(ABC):
    """One MLflow tracking store with its registry and artifacts. It connects at the first call.

    Calls that are harmless when repeated are repeated at once after a transient failure; the creations of runs, logged
    models and versions are not, see `Once`.

    Attributes:
        shown_uri: The tracking URI with its credentials masked.
    """

    shown_uri: str

    @abstractmethod
    def load(self) -> None:
        """Import what the calls need. Call this from one thread before several threads use the store."""

    @abstractmethod
    def mlflow_version(self) -> str:
        """Return the version of MLflow that answers; empty if it does not say so."""

    @abstractmethod
    def renew(self) -> None:
        """Use the credentials that the environment holds by now."""

    # -- runs --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def find_experiment(self, name: str) -> Experiment | None:
        """Return the experiment `name`, or None if there is none."""

    @abstractmethod
    def create_experiment(self, name: str, artifact_location: str | None, tags: Mapping[str, str]) -> str:
        """Create an experiment and return its id; without an artifact location the store chooses one."""

    @abstractmethod
    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return the experiment with this id.

        Raises:
            Refused: There is none.
        """

    @abstractmethod
    def create_run(self, experiment_id: str, *, start_time: int, tags: dict[str, str], run_name: str | None) -> str:
        """Create a run and return its id."""

    @abstractmethod
    def find_runs(self, experiment_id: str, run_key: str) -> list[str]:
        """Return the ids of the active runs that carry `run_key`, oldest first."""

    @abstractmethod
    def run(self, run_id: str) -> StoredRun:
        """Return a run with its params, tags and last metrics."""

    @abstractmethod
    def delete_run(self, run_id: str) -> None:
        """Delete a run that was created twice."""

    @abstractmethod
    def set_running(self, run_id: str) -> None:
        """Make an ended run RUNNING again."""

    @abstractmethod
    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        """End a run with its true status and end time (ms since the epoch)."""

    @abstractmethod
    def log_batch(self, run_id: str, batch: Batch) -> None:
        """Log one batch."""

    @abstractmethod
    def delete_tag(self, run_id: str, name: str) -> None:
        """Delete a tag of a run, if it has it."""

    @abstractmethod
    def history(self, run_id: str, key: str, *, whole: bool = True) -> list[Point]:
        """Return the points of a metric, sorted by time and step: all of them, or the first that one request brings."""

    def experiment_id(
        self, name: str, artifact_location: str | None = None, tags: Mapping[str, str] = MappingProxyType({})
    ) -> str:
        """Return the id of the experiment `name`, and create it if it does not exist.

        Args:
            name: Its name.
            artifact_location: Of an experiment that is created here; None leaves it to the store.
            tags: Of an experiment that is created here.

        Raises:
            Blocked: The experiment is deleted.
            Refused: It would be created with a folder of a machine as its artifact location. A journal may not say
                where on this machine delivery writes, because it may come from elsewhere.
        """
        experiment = self.find_experiment(name)
        if experiment is None:
            if artifact_location is not None and is_local_location(artifact_location):
                raise Refused(f"the artifact location of experiment {name!r} is a folder: {artifact_location[:200]}")
            try:
                return self.create_experiment(name, artifact_location, tags)
            except Refused as error:
                experiment = self.find_experiment(name)
                if error.code not in ALREADY_THERE or experiment is None:
                    raise  # otherwise another trainer has just created it
        if not experiment.active:
            raise Blocked(f"experiment {name!r} is deleted; restore it (mlflow experiments restore) to go on")
        return experiment.experiment_id

    def check_experiment(self, experiment_id: str) -> str:
        """Return `experiment_id` if the store has an experiment of this id.

        Raises:
            Blocked: It has none.
        """
        try:
            self.get_experiment(experiment_id)
        except Refused as error:
            raise Blocked(
                f"there is no experiment with the id {experiment_id!r}, which mlflow.set_experiment or "
                f"MLFLOW_EXPERIMENT_ID has chosen ({error})"
            ) from error
        return experiment_id

    def check_active(self, run_id: str) -> StoredRun:
        """Return the run if it can be written to.

        Raises:
            Blocked: The run was deleted. The store answers a write to it with the same status as a bad name.
        """
        run = self.run(run_id)
        if not run.active:
            raise Blocked(f"run {run_id} is deleted; restore it (mlflow runs restore) to go on")
        return run

    def last_step(self, run_id: str) -> int:
        """Return the highest step of the run's metrics, those of the system apart; 0 if there are none."""
        latest = self.run(run_id).metrics
        return max((point.step for point in latest if not point.key.startswith("system/")), default=0)

    # -- files and datasets ------------------------------------------------------------------------------------------

    @abstractmethod
    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        """Upload a file."""

    @abstractmethod
    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        """Upload the content of a folder."""

    @abstractmethod
    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        """Record a dataset as an input of the run; a replay changes nothing."""

    def declare_table(self, run_id: str, place: str) -> None:
        """Make the UI show a file as a table, as ``mlflow.log_table`` does; a replay changes nothing."""
        try:
            tables = json.loads(self.run(run_id).tags.get(TABLES_TAG, "[]"))
        except ValueError as error:
            raise Refused(f"the run's tag {TABLES_TAG} is not valid JSON") from error
        table = {"path": place, "type": "table"}
        if table not in tables:
            self.log_batch(run_id, Batch(tags={TABLES_TAG: json.dumps([*tables, table])}))

    # -- models ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def find_models(self, experiment_id: str, record_key: str) -> list[StoredModel]:
        """Return the logged models that former attempts made for this record, oldest first.

        Raises:
            NotOffered: The store has no logged models.
        """

    @abstractmethod
    def delete_model(self, model_id: str) -> None:
        """Delete a logged model that was created twice."""

    @abstractmethod
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
        """Create a logged model that is not ready, with at most `MODEL_PARAMS_PER_CALL` params.

        Raises:
            NotOffered: The store has no logged models.
        """

    @abstractmethod
    def get_model(self, model_id: str) -> StoredModel:
        """Return a logged model.

        Raises:
            Refused: There is none.
        """

    def upload_model(self, model: StoredModel, folder: Path) -> None:
        """Upload a logged model's files and mark it ready."""
        self.upload_model_files(model, folder)
        self.finish_model(model.model_id, "READY")

    @abstractmethod
    def upload_model_files(self, model: StoredModel, folder: Path) -> None:
        """Upload the content of a folder to the root of a logged model."""

    @abstractmethod
    def finish_model(self, model_id: str, status: str) -> None:
        """Say whether a logged model has all its files: ``READY`` or ``FAILED``."""

    @abstractmethod
    def model_params(self, model_id: str) -> dict[str, str]:
        """Return the params of a logged model."""

    def add_model_params(self, model_id: str, params: dict[str, str]) -> None:
        """Add params to a logged model, apart from those that it has: MLflow takes a param once.

        So it may be repeated after a request whose answer was lost.

        Raises:
            Refused: The model has a param with another value.
        """
        there = self.model_params(model_id)
        new = {key: text for key, text in params.items() if there.get(key) != text}
        names = list(new)
        for first in range(0, len(names), MODEL_PARAMS_PER_CALL):
            chunk = names[first : first + MODEL_PARAMS_PER_CALL]
            self.log_model_params(model_id, {key: new[key] for key in chunk})

    @abstractmethod
    def log_model_params(self, model_id: str, params: dict[str, str]) -> None:
        """Add at most `MODEL_PARAMS_PER_CALL` params to a logged model, in one request that is made once."""

    @abstractmethod
    def untag_model(self, model_id: str, key: str) -> None:
        """Delete a tag of a logged model."""

    @abstractmethod
    def add_input(self, run_id: str, model_id: str) -> None:
        """Record a logged model as an input of the run."""

    @abstractmethod
    def add_output(self, run_id: str, model_id: str, step: int) -> None:
        """Record a logged model as an output of the run. A store refuses to do so twice."""

    @abstractmethod
    def link_metrics(
        self, run_id: str, model_id: str, points: Sequence[Point], dataset: tuple[str, str] | None = None
    ) -> None:
        """Link points that the run already has to a model, by sending them again with the model's id.

        Args:
            run_id: The run.
            model_id: The logged model.
            points: The points.
            dataset: Name and digest of the dataset that they were measured on.
        """

    @abstractmethod
    def tag_model(self, model_id: str, tags: dict[str, str]) -> None:
        """Set tags of a logged model."""

    def link_model(self, run_id: str, model_id: str, step: int) -> None:
        """Record a logged model as an output of the run; a replay changes nothing."""
        if model_id in self.run(run_id).models:
            return
        try:
            self.add_output(run_id, model_id, step)
        except Refused:  # the store answers a second link with 400, IntegrityError; the first may have arrived late
            if model_id not in self.run(run_id).models:
                raise

    # -- the registry ------------------------------------------------------------------------------------------------

    @abstractmethod
    def create_registered_model(
        self, name: str, tags: dict[str, str] | None = None, description: str | None = None
    ) -> None:
        """Create a registered model."""

    @abstractmethod
    def describe_registered_model(self, name: str, description: str) -> None:
        """Set the description of a registered model."""

    @abstractmethod
    def tag_registered_model(self, name: str, tags: dict[str, str]) -> None:
        """Set tags of a registered model."""

    @abstractmethod
    def untag_registered_model(self, name: str, key: str) -> None:
        """Delete a tag of a registered model."""

    @abstractmethod
    def untag_version(self, name: str, version: str, key: str) -> None:
        """Delete a tag of a model version."""

    @abstractmethod
    def drop_alias(self, name: str, alias: str) -> None:
        """Delete an alias."""

    @abstractmethod
    def find_versions(self, name: str, run_id: str, record_key: str) -> list[StoredVersion]:
        """Return the model versions that former attempts made for this record, oldest first."""

    @abstractmethod
    def delete_version(self, name: str, version: str) -> None:
        """Delete a model version that was created twice."""

    @abstractmethod
    def create_version(self, name: str, *, model: StoredModel, run_id: str, tags: dict[str, str]) -> StoredVersion:
        """Create a model version from a logged model."""

    @abstractmethod
    def create_version_of_artifacts(self, name: str, *, run_id: str, place: str, tags: dict[str, str]) -> StoredVersion:
        """Create a model version from the folder `place` of a run's artifacts, as ``runs:/<run id>/<place>`` does."""

    @abstractmethod
    def create_version_of_uri(self, name: str, *, source: str, run_id: str, tags: dict[str, str]) -> StoredVersion:
        """Create a model version from the files at a URI."""

    @abstractmethod
    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point `alias` of a registered model at `version`."""

    @abstractmethod
    def model_names(self) -> list[str]:
        """Return the names of all registered models, in order."""

    @abstractmethod
    def aliases(self, name: str) -> dict[str, str]:
        """Return the versions of a registered model that aliases point at, by alias."""

    @abstractmethod
    def version(self, name: str, version: str) -> StoredVersion:
        """Return a model version.

        Raises:
            Refused: There is none.
        """

    @abstractmethod
    def versions(self, name: str) -> list[StoredVersion]:
        """Return all versions of a registered model, oldest first."""

    @abstractmethod
    def tag_version(self, name: str, version: str, tags: dict[str, str]) -> None:
        """Set tags of a model version."""

    @abstractmethod
    def describe_version(self, name: str, version: str, description: str) -> None:
        """Set the description of a model version."""

    @abstractmethod
    def model_points(self, model_id: str) -> list[Point]:
        """Return the points that are linked to a logged model."""

    def register_model(self, name: str, tags: dict[str, str] | None = None, description: str | None = None) -> None:
        """Create a registered model unless one of that name exists."""
        try:
            self.create_registered_model(name, tags, description)
        except Refused as error:
            if error.code not in ALREADY_THERE:
                raise


def model_id_in(source: str) -> str:
    """Return the id of the logged model that a version's source names; empty if it names none."""
    found = _MODEL_ID.search(source)
    return "" if found is None else found.group()


def names_model(name: str) -> str:
    """Return the search expression for the versions of one registered model."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


def files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file at any depth with its ``/``-separated parent folder, which is empty for `folder` itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place = path.parent.relative_to(folder).as_posix()
            yield path, "" if place == "." else place
