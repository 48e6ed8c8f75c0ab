"""Turns an MLmodel folder into a logged, linked and registered model, using only client calls.

``mlflow.<flavor>.log_model`` is not used because it reads back the full history of every metric. This module does what
it would do, in steps that are harmless when repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tracking_callbacks._delivery.batches import MAX_METRICS, Point
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.stores.client import RECORD_TAG, MlflowStore
from tracking_callbacks._journal.records import Model

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

__all__ = ["deliver_model"]

# The tags that MLflow's context_registry.resolve_tags would set on a logged model.
_CONTEXT_TAGS = (
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.source.git.commit",
    "mlflow.source.git.branch",
    "mlflow.source.git.repoURL",
)
_VERSIONS_TAG = "mlflow.modelVersions"  # undocumented: mlflow.utils.mlflow_tags, MLflow 3.17.2


def deliver_model(store: MlflowStore, once: Once, run_id: str, record: Model, folder: Path) -> None:
    """Log the model in `folder`, link it to the run and its last metrics, register it and set its aliases.

    Args:
        store: The MLflow store.
        once: Prevents a model or version from being created twice.
        run_id: The run that produced the model; all its points must have been delivered.
        record: What the user asked for.
        folder: Snapshot of the MLmodel folder; its ``MLmodel`` file is completed in place.

    Raises:
        DeliveryError: A step failed; another call continues from there.
    """
    run = store.run(run_id)
    description = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    experiment_id = run.info.experiment_id
    context = {key: run.data.tags[key] for key in _CONTEXT_TAGS if key in run.data.tags}
    model = once.make(
        f"model:{record.record_key}",
        find=lambda: store.find_models(experiment_id, record.record_key),
        create=lambda: store.create_model(
            experiment_id,
            name=record.name,
            run_id=run_id,
            tags=context | record.tags | {RECORD_TAG: record.record_key},
            params=dict(run.data.params),
            model_type=description.get("model_type"),
        ),
        discard=lambda twin: store.delete_model(twin.model_id),
        look_first=True,
    )
    if str(model.status) not in ("READY", "LoggedModelStatus.READY"):
        _complete_mlmodel(folder / "MLmodel", description, model, run_id)
        store.upload_model(model.model_id, folder)
    last = _last_points(run, record.step)
    step = record.step if record.step is not None else max((point.step for point in last), default=0)
    store.link_model(run_id, model.model_id, step)
    for first in range(0, len(last), MAX_METRICS):
        store.link_metrics(run_id, model.model_id, last[first : first + MAX_METRICS])
    if record.registered_model_name is not None:
        _register(store, once, run_id, record, model, record.registered_model_name)


def _complete_mlmodel(path: Path, description: dict[str, object], model: LoggedModel, run_id: str) -> None:
    identity = {
        "run_id": run_id,
        "model_id": model.model_id,
        "model_uuid": model.model_id,
        "artifact_path": model.artifact_location,
    }
    path.write_text(yaml.safe_dump(description | identity, sort_keys=True, allow_unicode=True), encoding="utf-8")


def _last_points(run: Run, step: int | None) -> list[Point]:
    """Return the run's last value of each metric; if `step` is given, only of metrics last logged at that step."""
    # Run.data.metrics lacks steps and times; the metric objects have them. Undocumented (MLflow 3.17.2).
    return [
        Point(metric.key, metric.value, metric.timestamp, metric.step)
        for metric in run.data._metric_objs
        if step is None or metric.step == step
    ]


def _register(store: MlflowStore, once: Once, run_id: str, record: Model, model: LoggedModel, name: str) -> None:
    store.register_model(name)
    version = once.make(
        f"version:{record.record_key}",
        find=lambda: store.find_versions(name, run_id, record.record_key),
        create=lambda: store.create_version(
            name, model_id=model.model_id, run_id=run_id, tags=record.tags | {RECORD_TAG: record.record_key}
        ),
        discard=lambda twin: store.delete_version(name, twin.version),
        look_first=True,
    )
    versions = json.loads(model.tags.get(_VERSIONS_TAG, "[]"))
    entry = {"name": name, "version": str(version.version)}
    if entry not in versions:
        store.tag_model(model.model_id, {_VERSIONS_TAG: json.dumps([*versions, entry])})
    for alias in record.aliases:
        store.set_alias(name, alias, str(version.version))
