"""Runs without a framework, ours and raw ``MlflowClient`` ones; they run in fresh processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import METRICS, values_at
from benchmarks.fresh import listen, say
from benchmarks.timing import percentile

__all__ = ["end_with_pending", "grow", "grow_delivered", "log_at_pace", "send_raw", "stay_idle", "write_offline"]

PROJECT = "benchmark"
BATCH = 1000


def _arrived(run: Any, seconds: float = 60.0) -> None:
    """Wait until delivery is up and has caught up."""
    deadline = time.monotonic() + seconds
    while (report := run.report()).pending or not report.delivered:
        assert time.monotonic() < deadline, report
        time.sleep(0.02)


def end_with_pending(uri: str, points: int, everything: bool) -> dict[str, Any]:
    """Log `points` at once while delivery is up, end the run, and time the rest of its delivery."""
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT, record=everything).start_run()
    run.log_metrics({"first": 0.0})
    _arrived(run)
    time.sleep(1.0)  # no batch in flight
    calls = points // len(METRICS)
    for step in range(calls):
        run.log_metrics(values_at(step), step)
    pending = run.report().pending
    began = time.perf_counter()
    run.end()
    assert run.flush(600).complete
    return {"seconds": time.perf_counter() - began, "pending": pending, "run_id": run.run_id}


def send_raw(uri: str, points: int) -> dict[str, Any]:
    """Send the same points with ``MlflowClient.log_batch``, a thousand at a time, and time only that."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(PROJECT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
    run_id = client.create_run(experiment_id).info.run_id
    calls = BATCH // len(METRICS)
    began = time.perf_counter()
    for first in range(0, points // len(METRICS), calls):
        now = time.time_ns() // 1_000_000
        batch = [
            Metric(name, value, now, step)
            for step in range(first, first + calls)
            for name, value in values_at(step).items()
        ]
        client.log_batch(run_id, batch)
    seconds = time.perf_counter() - began
    client.set_terminated(run_id)
    return {"seconds": seconds, "run_id": run_id}


def write_offline(uri: str, journal_root: str, points: int) -> dict[str, Any]:
    """Write `points` into a journal without delivering it."""
    from tracking_callbacks import Delivery, MLflowTracker

    tracker = MLflowTracker(uri, PROJECT, record=False, delivery=Delivery(journal_root=journal_root, offline=True))
    with tracker.start_run() as run:
        for step in range(points // len(METRICS)):
            run.log_metrics(values_at(step), step)
    return {"run_key": run.run_key}


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def grow(uri: str, records: int) -> dict[str, Any]:
    """Log records of five metrics, and measure the cost of a call and the memory of this process on the way."""
    from tracking_callbacks import Delivery, MLflowTracker

    run = MLflowTracker(uri, PROJECT, record=False, delivery=Delivery(offline=True)).start_run()
    marks = [mark for mark in (10**3, 10**4, 10**5, 10**6) if mark <= records]
    figures: dict[str, Any] = {}
    recent: list[int] = []
    for step in range(records):
        metrics = values_at(step)
        began = time.perf_counter_ns()
        run.log_metrics(metrics, step)
        recent.append(time.perf_counter_ns() - began)
        if step + 1 == marks[0]:
            figures[f"p50_us_{marks[0]}"] = percentile(recent, 50) / 1000
            figures[f"rss_mb_{marks[0]}"] = _resident_mb()
            marks.pop(0)
        if len(recent) == 1000:
            recent.clear()
        if not marks:
            break
    journal = sum(path.stat().st_size for path in Path.cwd().rglob("*.journal"))
    run.end()
    return figures | {"bytes": journal / records}


def grow_delivered(uri: str, records: int) -> dict[str, Any]:
    """Log many records while delivery is up, then stay until the benchmark has seen enough."""
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT).start_run()
    run.log_metrics(values_at(0), 0)
    _arrived(run)
    began = _resident_mb()
    for step in range(1, records):
        run.log_metrics(values_at(step), step)
    say(trainer_before_mb=began, trainer_after_mb=_resident_mb())
    while True:  # the benchmark kills this process because millions of points take too long
        time.sleep(0.5)
        report = run.report()
        say(trainer_before_mb=began, trainer_after_mb=_resident_mb(), delivered=report.delivered)


def log_at_pace(
    uri: str, seconds: float, hertz: float, busy: bool = False, checkpoint: str = "", copied: bool = False
) -> dict[str, Any]:
    """Log a point several times per second, and a checkpoint after the first three seconds.

    Args:
        uri: The store.
        seconds: How long.
        hertz: Points per second.
        busy: Keep every core busy between the points.
        checkpoint: A file to log.
        copied: Log it as an artifact, which is copied.
    """
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT).start_run()
    work = _matrices() if busy else None
    run_id = run.run_id
    say(run_id=run_id)
    began = time.perf_counter()
    hook: dict[str, float] = {}
    for step in range(int(seconds * hertz)):
        run.log_metrics({"value": float(step)}, step)
        due = began + (step + 1) / hertz
        if checkpoint and not hook and time.perf_counter() - began > 3:
            logged = time.time_ns() // 1_000_000
            spent, started = time.thread_time(), time.perf_counter()
            (run.log_artifact if copied else run.log_checkpoint)(checkpoint)
            took, cpu = time.perf_counter() - started, time.thread_time() - spent
            hook = {"hook_ms": 1000 * took, "hook_cpu_ms": 1000 * cpu}
            say(run_id=run_id, logged=logged)
        if work is not None:
            while time.perf_counter() < due:
                work()
        else:
            time.sleep(max(due - time.perf_counter(), 0))
    run.end()
    assert run.flush(600).complete
    return hook


def _matrices() -> Any:
    import torch

    left, right = torch.rand(600, 600), torch.rand(600, 600)
    return lambda: left @ right


def time_logging(uri: str, size: int, calls: int) -> dict[str, Any]:
    """Time calls of `logging` with lines of `size` characters; a run records them where there is a `uri`."""
    import logging

    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT).start_run() if uri else None
    logger = logging.getLogger("training")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    message = ("the loss went down to 0.123 after the step, " * (size // 44 + 1))[:size] + " %d"
    spent = []
    for number in range(calls):
        before = time.perf_counter()
        logger.info(message, number)
        spent.append(1e6 * (time.perf_counter() - before))
    if run is not None:
        run.end()
        run.flush(600)
    return {"p50_us": percentile(spent, 50), "p99_us": percentile(spent, 99)}


def write_checkpoint(path: str, megabytes: int) -> dict[str, Any]:
    """Write a checkpoint of random weights, as safetensors or as `torch.save` does."""
    import torch

    weights = {f"layer.{i}": torch.rand(megabytes * 25_000) for i in range(10)}  # 10 × 4 bytes each
    if path.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(weights, path)
    else:
        torch.save(weights, path)
    return {"bytes": Path(path).stat().st_size}


def stay_idle(uri: str) -> dict[str, Any]:
    """Log one point, then nothing, until the benchmark has seen enough."""
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker(uri, PROJECT).start_run()
    run.log_metrics({"value": 1.0}, 0)
    _arrived(run)
    say(arrived=True)
    listen()
    run.end()
    assert run.flush(60).complete
    return {}


def start_tracker(uri: str, journal_root: str, everything: bool) -> dict[str, Any]:
    """Start a run and log its first point."""
    from tracking_callbacks import Delivery, MLflowTracker

    tracker = MLflowTracker(uri, PROJECT, record=everything, delivery=Delivery(journal_root=journal_root))
    spent, began = time.thread_time(), time.perf_counter()
    run = tracker.start_run()
    started = time.perf_counter()
    run.log_metrics(values_at(0), 0)
    logged, cpu = time.perf_counter(), time.thread_time() - spent
    run.end()
    ended = time.perf_counter()
    assert run.flush(120).complete
    return {
        "start_ms": 1000 * (started - began),
        "first_log_ms": 1000 * (logged - started),
        "cpu_ms": 1000 * cpu,
        "end_ms": 1000 * (ended - logged),
    }
