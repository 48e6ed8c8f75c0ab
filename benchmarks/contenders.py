"""How each contender logs a few metrics at a step; runs in fresh processes.

An opener takes the tracking URI (empty for contenders without one) and returns a function to log and one to close. When
close returns, everything is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import percentile

__all__ = ["METRICS", "OPENERS", "time_calls", "values_at"]

METRICS = ("loss", "accuracy", "f1", "grad_norm", "learning_rate")
PROJECT = "benchmark"

Log = Callable[[dict[str, float], int], Any]
Close = Callable[[], Any]


def values_at(step: int) -> dict[str, float]:
    """Return the five metrics of a step."""
    return {name: (step + offset) / 7 for offset, name in enumerate(METRICS)}


def open_ours(uri: str) -> tuple[Log, Close]:
    """``run.log_metrics`` of this package."""
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT).start_run()

    def close() -> str | None:
        run.end()
        assert run.flush(1200).complete
        return run.run_id

    return run.log_metrics, close


def open_mlflow_sync(uri: str) -> tuple[Log, Close]:
    """``mlflow.log_metrics``, which waits for the store."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(PROJECT)
    mlflow.start_run()
    return lambda metrics, step: mlflow.log_metrics(metrics, step, synchronous=True), mlflow.end_run


def open_mlflow_async(uri: str) -> tuple[Log, Close]:
    """``mlflow.log_metrics(synchronous=False)``, with a queue in memory."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(PROJECT)
    mlflow.start_run()

    def close() -> None:
        mlflow.flush_async_logging()
        mlflow.end_run()

    return lambda metrics, step: mlflow.log_metrics(metrics, step, synchronous=False), close


def open_wandb(uri: str) -> tuple[Log, Close]:
    """``run.log`` of wandb, offline."""
    import wandb

    run = wandb.init(project=PROJECT, mode="offline")
    return run.log, run.finish


def open_trackio(uri: str) -> tuple[Log, Close]:
    """``trackio.log``, into its local database, without CPU samples, which the others do not take either."""
    import trackio

    trackio.init(project=PROJECT, embed=False, auto_log_cpu=False, auto_log_gpu=False)
    return trackio.log, trackio.finish


def open_tensorboard(uri: str) -> tuple[Log, Close]:
    """``SummaryWriter.add_scalar``, one call per metric."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter("tensorboard")

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


OPENERS = {
    "ours": open_ours,
    "mlflow sync": open_mlflow_sync,
    "mlflow async": open_mlflow_async,
    "wandb": open_wandb,
    "trackio": open_trackio,
    "tensorboard": open_tensorboard,
}


def time_calls(opener: str, uri: str, calls: int) -> dict[str, Any]:
    """Time each of `calls` calls of five metrics, as fast as they go, and the close."""
    log, close = OPENERS[opener](uri)
    nanoseconds = []
    spent = time.thread_time_ns()
    for step in range(calls):
        metrics = values_at(step)
        began = time.perf_counter_ns()
        log(metrics, step)
        nanoseconds.append(time.perf_counter_ns() - began)
    spent = time.thread_time_ns() - spent
    began = time.perf_counter()
    run_id = close()
    return {
        "p50_us": percentile(nanoseconds, 50) / 1000,
        "p99_us": percentile(nanoseconds, 99) / 1000,
        "cpu_us": spent / calls / 1000,
        "close_s": time.perf_counter() - began,
        "run_id": run_id if opener == "ours" else None,
    }
