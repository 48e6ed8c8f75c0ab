"""Row 1: what a call costs training."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.contenders import METRICS, time_calls

__all__ = ["ROW"]

OURS = "this package, HTTP"
WANDB = "wandb offline"
MLFLOW_ASYNC = "MLflow async, HTTP"


def _measure(bench: Bench, opener: str, full: int, store: str = "") -> Figures:
    calls = bench.size(full, min(full, 200))
    uri = ""
    if store == "http":
        uri = bench.server(opener).uri
    elif store == "sqlite":
        uri = f"sqlite:///{bench.folder('sqlite')}/mlflow.db"
    result = bench.run(time_calls, opener=opener, uri=uri, calls=calls)
    run_id = result.pop("run_id")
    if opener == "ours":
        bench.server(opener).check_exact(run_id, calls * len(METRICS))
    return {"calls": calls} | result


def _contender(opener: str, calls: int, store: str = "") -> Callable[[Bench], Figures]:
    return functools.partial(_measure, opener=opener, full=calls, store=store)


ROW = Row(
    name="1",
    title="A call of `log_metrics` with five metrics",
    method=(
        "Calls follow one another without a pause, from the first one after the run's start, while delivery starts in "
        "parallel. CPU is `time.thread_time` of the calling thread over all calls. Close is the time from the last "
        "call until everything is stored: on the server, or in the peer's own file. Slow peers make fewer calls. After "
        "a SIGKILL of this process our points are safe in the journal, and those of synchronous MLflow on the server; "
        "wandb, trackio and MLflow async queue points in memory first. The points of this package are counted in the "
        "store after each round."
    ),
    groups=(
        Group(
            title="one call, five metrics",
            contenders={
                OURS: _contender("ours", 20_000, "http"),
                "trackio": _contender("trackio", 20_000),
                "TensorBoard": _contender("tensorboard", 20_000),
                WANDB: _contender("wandb", 20_000),
                MLFLOW_ASYNC: _contender("mlflow async", 1_000, "http"),
                "MLflow async, SQLite": _contender("mlflow async", 1_000, "sqlite"),
                "MLflow sync, HTTP": _contender("mlflow sync", 200, "http"),
                "MLflow sync, SQLite": _contender("mlflow sync", 200, "sqlite"),
            },
            columns=(
                Column("calls", "calls", 0),
                Column("p50_us", "p50, µs"),
                Column("p99_us", "p99, µs"),
                Column("cpu_us", "CPU per call, µs"),
                Column("close_s", "close, s"),
            ),
            bars=(
                Bar("p50 ≤ 8 µs", lambda of: of.median(OURS, "p50_us"), 8),
                Bar("p99 ≤ 40 µs", lambda of: of.median(OURS, "p99_us"), 40),
                Bar("p50 ≤ 0.6 × trackio's", lambda of: of.ratio("p50_us", OURS, "trackio"), 0.6),
                Bar("wandb's p50 ≥ 30 × ours", lambda of: of.ratio("p50_us", WANDB, OURS), 30, at_least=True),
                Bar("MLflow async's ≥ 50 × ours", lambda of: of.ratio("p50_us", MLFLOW_ASYNC, OURS), 50, at_least=True),
            ),
        ),
    ),
)
