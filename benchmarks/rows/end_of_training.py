"""Row 4: the end of a training run that has just logged a lot."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.runs import end_with_pending, send_raw

__all__ = ["ROW"]

OURS = "this package, points alone"
COMPLETE = "this package, with everything a run holds"
RAW = "raw `log_batch`, 1 000 a call"


def _ours(bench: Bench, *, everything: bool) -> Figures:
    store, points = bench.server("server"), bench.size(10_000, 2_000)
    result = bench.run(end_with_pending, uri=store.uri, points=points, everything=everything)
    store.check_exact(result.pop("run_id"), points + 1)
    return result


def _raw(bench: Bench) -> Figures:
    store, points = bench.server("server"), bench.size(10_000, 2_000)
    result = bench.run(send_raw, uri=store.uri, points=points)
    store.check_exact(result.pop("run_id"), points)
    return result


ROW = Row(
    name="4",
    title="The end of a training run with 10 000 points pending",
    method=(
        "Delivery is up and has caught up. Then 2 000 calls of five metrics follow one another in a few hundredths of "
        "a second, and the run ends. The time is that of `run.end()` and `run.flush()`, until all points, the status "
        "and the end time are in the store (in the second line also the rest of the log and the other files). "
        "Raw is the time of the ten `log_batch` calls alone, in a process that has imported MLflow and created the "
        "run. Pending is counted right before the end. All contenders use one healthy HTTP server."
    ),
    groups=(
        Group(
            title="from the end of the run until all is delivered",
            contenders={
                OURS: lambda bench: _ours(bench, everything=False),
                COMPLETE: lambda bench: _ours(bench, everything=True),
                RAW: _raw,
            },
            columns=(Column("seconds", "s", 2), Column("pending", "pending", 0)),
            bars=(
                Bar("flushed ≤ 1.1 × raw, points alone", lambda of: of.ratio("seconds", OURS, RAW), 1.1),
                Bar("flushed ≤ 1.3 × raw, with everything", lambda of: of.ratio("seconds", COMPLETE, RAW), 1.3),
            ),
        ),
    ),
)
