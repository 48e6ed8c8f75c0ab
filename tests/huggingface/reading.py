"""Read back from the server what a callback's run holds."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunInfo

from tracking_callbacks import MLflowTracker, Run
from tracking_callbacks.huggingface import MLflowTrainerCallback


def finished_run(callback: MLflowTrainerCallback) -> Run:
    """Wait until the server has all of the callback's run, and return it."""
    assert callback.run is not None
    assert callback.run.flush(timeout=60).complete
    return callback.run


def points(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.run_id, key)]


def artifacts(client: MlflowClient, run: Run | RunInfo, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run.run_id, folder):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def runs_of(client: MlflowClient, tracker: MLflowTracker) -> list[Any]:
    experiment = client.get_experiment_by_name(tracker.settings.experiment_name)
    return list(client.search_runs([experiment.experiment_id]))
