"""Row 8: how soon a point is in the store."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.watching import freshness, watch

__all__ = ["ROW"]

SPARE = "a core to spare"
BUSY = "every core busy"


def _measure(bench: Bench, *, busy: bool) -> Figures:
    seconds = bench.size(30, 4)
    child, seen, _ = watch(bench, bench.server("server"), seconds, 10, busy=busy)
    child.result()
    assert len(seen) >= seconds * 10 - 1, "points are missing"
    return freshness(seen)


ROW = Row(
    name="8",
    title="Freshness",
    method=(
        "Once delivery is up, a run logs a point ten times per second for half a minute (MLflow's import and the run's "
        "creation delay the very first points by seconds). Another process reads the server's database every 50 ms and "
        "compares the time at which it sees a point with the point's own time. In the second line torch multiplies "
        "matrices on every core between the points; delivery yields the cores there, and the package promises nothing."
    ),
    groups=(
        Group(
            title="from log_metrics to the store, HTTP server",
            contenders={
                SPARE: lambda bench: _measure(bench, busy=False),
                BUSY: lambda bench: _measure(bench, busy=True),
            },
            columns=(
                Column("points", "points", 0),
                Column("p50_s", "p50, s", 2),
                Column("p95_s", "p95, s", 2),
                Column("max_s", "slowest, s", 2),
            ),
            bars=(
                Bar("p95 ≤ 1.5 s with a core to spare", lambda of: of.median(SPARE, "p95_s"), 1.5),
                Bar("p95 with every core busy, s", lambda of: of.median(BUSY, "p95_s")),
            ),
        ),
    ),
)
