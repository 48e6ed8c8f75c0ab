"""Turns an MLmodel folder into a logged, linked and registered model, using only client calls.

``mlflow.<flavor>.log_model`` is not used because it reads back the full history of every metric. This module does what
it would do, in steps that are harmless when repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tracking_callbacks._delivery.batches import MAX_METRICS, Point
from tracking_callbacks._delivery.failures import NotOffered, Refused
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.stores.store import (
    MODEL_PARAMS_PER_CALL,
    RECORD_TAG,
    Store,
    StoredModel,
    StoredRun,
    StoredVersion,
)
from tracking_callbacks._journal.confined import is_key
from tracking_callbacks._journal.layout import LoggedModel, RunState
from tracking_callbacks._journal.records import Model

__all__ = ["VERSIONS_TAG", "complete_mlmodel", "delete_model", "deliver_model", "make_model"]

logger = logging.getLogger(__name__)

# The tags that MLflow's context_registry.resolve_tags would set on a logged model.
_CONTEXT_TAGS = (
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.source.git.commit",
    "mlflow.source.git.branch",
    "mlflow.source.git.repoURL",
)
_EVALUATIONS = ("eval/", "test/")
VERSIONS_TAG = "mlflow.modelVersions"  # undocumented: mlflow.utils.mlflow_tags, MLflow 3.17.2


def deliver_model(store: Store, once: Once, run_id: str, record: Model, folder: Path, state: RunState) -> None:
    """Log the model in `folder`, link it to the run and its last metrics, register it and set its aliases.

    In a store without logged models (MLflow before 3.0, Azure ML) the folder becomes artifacts of the run, and the
    version is registered from there.

    Args:
        store: The MLflow store.
        once: Prevents a model or version from being created twice.
        run_id: The run that produced the model; all its points must have been delivered.
        record: What the user asked for.
        folder: Snapshot of the MLmodel folder; its ``MLmodel`` file is completed in place.
        state: Receives the model's flavors, and its version if it is registered, by the record's key.

    Raises:
        Refused: `folder` is no model, or the store will never accept it.
        DeliveryError: A step failed; another call continues from there.
    """
    run = store.run(run_id)
    description = _read_mlmodel(folder / "MLmodel")
    flavors = description.get("flavors")
    names = sorted(map(str, flavors)) if isinstance(flavors, dict) else []
    model: StoredModel | None = None
    points = _points_of(store, run, record.step)
    try:
        model = _log_model(store, once, run, record, folder, description)
    except NotOffered:
        logger.info("run %s: the store has no logged models; %s becomes artifacts of the run", run_id, record.name)
        identity = {"run_id": run_id, "artifact_path": record.name}
        _complete_mlmodel(folder / "MLmodel", description, identity)
        store.log_artifacts(run_id, folder, record.name)
    else:
        step = record.step if record.step is not None else max((point.step for point in points), default=0)
        store.link_model(run_id, model.model_id, step)
        for dataset, own in _by_dataset(points, record.data).items():
            for first in range(0, len(own), MAX_METRICS):
                _link_metrics(store, run_id, model.model_id, own[first : first + MAX_METRICS], dataset)
    if (version := _register(store, once, run_id, record, model)) is not None:
        state.versions[record.record_key] = version
    name, model_id = record.registered_model_name, None if model is None else model.model_id
    deflated = ""
    if name is not None and version is not None:
        from tracking_callbacks._delivery.deflation import deflate  # most runs register nothing

        deflated = deflate(store, run, name, version, points)
    state.models[record.record_key] = LoggedModel(names, name, model_id, deflated)


def delete_model(store: Store, run_id: str, record_key: str, state: RunState) -> None:
    """Delete the logged model of a record, if the store has it.

    Raises:
        Refused: `record_key` is none.
        DeliveryError: The store did not do it this time.
    """
    if not is_key(record_key):
        raise Refused(f"the model's record key {record_key[:200]!r} is not one")
    with contextlib.suppress(NotOffered):
        for model in store.find_models(store.run(run_id).experiment_id, record_key):
            store.delete_model(model.model_id)
    state.models.pop(record_key, None)


def _log_model(
    store: Store, once: Once, run: StoredRun, record: Model, folder: Path, description: dict[str, object]
) -> StoredModel:
    """Return the logged model of `record`, with all its files.

    Raises:
        NotOffered: The store has no logged models.
        DeliveryError: A step failed.
    """
    experiment_id, run_id = run.experiment_id, run.run_id
    model_type = description.get("model_type")
    context = {key: run.tags[key] for key in _CONTEXT_TAGS if key in run.tags}
    model = make_model(
        store,
        once,
        experiment_id,
        record.record_key,
        name=record.name,
        run_id=run_id,
        tags=context | record.tags,
        params=run.params,
        model_type=model_type if isinstance(model_type, str) else None,
    )
    if not model.ready:
        complete_mlmodel(folder / "MLmodel", model, run_id)
        store.upload_model(model, folder)
    return model


def make_model(
    store: Store,
    once: Once,
    experiment_id: str,
    key: str,
    *,
    name: str,
    run_id: str | None,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    model_type: str | None,
) -> StoredModel:
    """Return the logged model that carries `key` as a tag, created exactly once, with all its params.

    Raises:
        DeliveryError: A step failed.
    """
    model = once.make(
        f"model:{key}",
        find=lambda: store.find_models(experiment_id, key),
        create=lambda: store.create_model(
            experiment_id,
            name=name,
            run_id=run_id,
            tags={**tags, RECORD_TAG: key},
            params=dict(itertools.islice(params.items(), MODEL_PARAMS_PER_CALL)),
            model_type=model_type,
        ),
        discard=lambda twin: store.delete_model(twin.model_id),
        look_first=True,
    )
    if len(params) > MODEL_PARAMS_PER_CALL and not model.ready:
        store.add_model_params(model.model_id, dict(params))
    return model


def _read_mlmodel(path: Path) -> dict[str, object]:
    import yaml

    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise Refused(f"the model's MLmodel file cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise Refused("the model's MLmodel file holds no mapping")
    return description


def complete_mlmodel(path: Path, model: StoredModel, run_id: str) -> None:
    """Write what the store calls a model, and the run that produced it, into its ``MLmodel`` file.

    Raises:
        Refused: The file cannot be read.
    """
    identity = {"model_id": model.model_id, "model_uuid": model.model_id, "artifact_path": model.artifact_uri}
    _complete_mlmodel(path, _read_mlmodel(path), identity | ({"run_id": run_id} if run_id else {}))


def _complete_mlmodel(path: Path, description: dict[str, object], identity: dict[str, str]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(description | identity, sort_keys=True, allow_unicode=True), encoding="utf-8")


def _points_of(store: Store, run: StoredRun, step: int | None) -> list[Point]:
    """Return the values that belong to a model: those at its step, without one the run's last values.

    Of metrics that have gone on since, only those of evaluations are looked up: the model may be that of the best one.
    """
    if step is None:
        return list(run.metrics)
    points = [point for point in run.metrics if point.step == step]
    for later in run.metrics:
        if later.step > step and later.key.startswith(_EVALUATIONS):
            own = [point for point in store.history(run.run_id, later.key) if point.step == step]
            points += own[-1:]
    return points


def _by_dataset(points: list[Point], data: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str] | None, list[Point]]:
    """Return the points by the dataset that they were measured on; None means that it is unknown."""
    found: dict[tuple[str, str] | None, list[Point]] = {}
    for point in points:
        role = point.key.rpartition("/")[0].replace("/", "_")
        found.setdefault(data.get(role), []).append(point)
    return found


def _link_metrics(
    store: Store, run_id: str, model_id: str, points: list[Point], dataset: tuple[str, str] | None
) -> None:
    """Link points to a model, apart from those that the store refuses: MLflow 3.0 does not find a NaN again."""
    try:
        store.link_metrics(run_id, model_id, points, dataset)
    except Refused as error:
        store.check_active(run_id)
        if len(points) == 1:
            logger.warning("run %s: %s is not linked to its model: %s", run_id, points[0].key, error)
            return
        middle = len(points) // 2
        _link_metrics(store, run_id, model_id, points[:middle], dataset)
        _link_metrics(store, run_id, model_id, points[middle:], dataset)


def _register(store: Store, once: Once, run_id: str, record: Model, model: StoredModel | None) -> str | None:
    """Register a logged model, or without one the run's artifacts below the model's name."""
    name = record.registered_model_name
    if name is None:
        return None
    tags = record.tags | {RECORD_TAG: record.record_key}

    def create() -> StoredVersion:
        if model is None:
            return store.create_version_of_artifacts(name, run_id=run_id, place=record.name, tags=tags)
        return store.create_version(name, model=model, run_id=run_id, tags=tags)

    store.register_model(name)
    version = once.make(
        f"version:{record.record_key}",
        find=lambda: store.find_versions(name, run_id, record.record_key),
        create=create,
        discard=lambda twin: store.delete_version(name, twin.version),
        look_first=True,
    )
    if model is not None:
        versions = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
        entry = {"name": name, "version": version.version}
        if entry not in versions:
            store.tag_model(model.model_id, {VERSIONS_TAG: json.dumps([*versions, entry])})
    for alias in record.aliases:
        store.set_alias(name, alias, version.version)
    return version.version
