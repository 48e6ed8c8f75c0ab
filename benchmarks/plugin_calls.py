"""Times MLflow's own calls through the plugin, and the same calls with a store that does nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import percentile

__all__ = ["time_import", "time_mlflow_calls"]


def time_mlflow_calls(uri: str, calls: int, kept: bool) -> dict[str, Any]:
    """Return the p50 and p99 of calls of the client and of the fluent API, in µs.

    Args:
        uri: The tracking URI.
        calls: How many of each.
        kept: The plugin keeps what is logged; otherwise its methods do nothing, and MLflow's own layer remains.
    """
    os.environ["MLFLOW_TRACKING_URI"] = uri
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        run_id = run.info.run_id
        mlflow.log_metric("first", 1.0)
        if not kept:
            from tracking_callbacks.mlflow_plugin.tracking_store import JournaledTrackingStore

            for name in ("log_metric", "log_batch"):
                setattr(JournaledTrackingStore, name, lambda *_, **__: None)
        batch = [Metric("loss", 0.5, 1, 1)]
        return (
            _timed("batch", calls, lambda step: client.log_batch(run_id, batch))
            | _timed("client", calls, lambda step: client.log_metric(run_id, "loss", 0.5, step, step))
            | _timed("fluent", calls, lambda step: mlflow.log_metric("loss", 0.5, step=step))
        )


def _timed(name: str, calls: int, call: Callable[[int], object]) -> dict[str, float]:
    taken = []
    for step in range(calls):
        began = time.perf_counter()
        call(step)
        taken.append(1e6 * (time.perf_counter() - began))
    return {f"{name}_p50_us": percentile(taken, 50), f"{name}_p99_us": percentile(taken, 99)}


def time_import() -> dict[str, Any]:
    """Return the milliseconds that loading the plugin's entry points takes, which ``import mlflow`` does."""
    from importlib.metadata import entry_points

    groups = ("mlflow.tracking_store", "mlflow.model_registry_store", "mlflow.artifact_repository")
    own = [one for group in groups for one in entry_points(group=group) if one.value.startswith("tracking_callbacks.")]
    assert own
    began = time.perf_counter()
    for one in own:
        one.load()
    return {"import_ms": 1000 * (time.perf_counter() - began)}
