"""Fixtures of the plugin's tests: MLflow without what it remembers from another test."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.tracking._tracking_service import utils as tracking_utils

from tracking_callbacks._writing.flushing import wait_for_delivery
from tracking_callbacks.mlflow_plugin import journals


@pytest.fixture
def fresh_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path, clean_environment: None) -> Iterator[None]:
    """Let the fluent API begin anew, and give back its global state."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restored at the end, because `set_tracking_uri` sets it
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    before = mlflow.get_tracking_uri()
    forget()
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
    forget()


def forget() -> None:
    """Make MLflow and the plugin forget their stores, and the experiment that was chosen."""
    tracking_utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    registry_utils._get_store_registry()._get_store_with_resolved_uri.cache_clear()
    tracking_utils._artifact_repos_cache.clear()
    mlflow.tracking.fluent._active_experiment_id = None
    journals._by_place.clear()


def delivered(uri: str, seconds: float = 60) -> None:
    """Wait until everything that this process has written for a store is there."""
    own = journals.journals_for(uri)
    runs = [*own._runs.values(), *filter(None, [own._calls])]
    for run in runs:
        if run.ended or run.joined:
            run.journal.seal(None)
    reports = wait_for_delivery([run.journal for run in runs], seconds)
    assert all(report.complete or not report.pending for report in reports), reports
