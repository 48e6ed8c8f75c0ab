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
    began = min(logged for logged, _ in seen)
    return freshness([(logged, there) for logged, there in seen if logged >= began + 1000])


ROW = Row(
    name="8",
    title="Freshness",
    method=(
        "A fresh process starts a run and logs a point ten times per second for half a minute. Another process reads "
        "the server's database every 50 ms and compares the time at which it sees a point with the point's own time, "
        "for the points that are logged from a second after the start of the run on. In the second line torch "
        "multiplies matrices on every core between the points."
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
                Bar("p95 ≤ 0.4 s with a core to spare", lambda of: of.median(SPARE, "p95_s"), 0.4),
                Bar("p95 ≤ 1 s with every core busy", lambda of: of.median(BUSY, "p95_s"), 1.0),
            ),
        ),
    ),
)
