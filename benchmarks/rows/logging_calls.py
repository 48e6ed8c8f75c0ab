"""Row 11: what recording the log costs a call of `logging`."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.runs import time_logging

__all__ = ["ROW"]

WITHOUT, WITH = "no run", "a run records"
LONG_WITHOUT, LONG_WITH = "no run, a line of 20 kB", "a run records, a line of 20 kB"


def _measure(bench: Bench, *, recorded: bool, size: int) -> Figures:
    uri = bench.server("server").uri if recorded else ""
    calls = bench.size(20_000 if size < 1000 else 2_000, 200)
    return dict(bench.run(time_logging, uri=uri, size=size, calls=calls))


def _contender(*, recorded: bool, size: int) -> Callable[[Bench], Figures]:
    return functools.partial(_measure, recorded=recorded, size=size)


ROW = Row(
    name="11",
    title="A call of `logging` while a run records",
    method=(
        "Calls of `logger.info` follow one another without a pause; the logger has one handler, which drops all. "
        "Each line is looked through for secrets before it is written to the run's log."
    ),
    groups=(
        Group(
            title="one call",
            contenders={
                WITHOUT: _contender(recorded=False, size=60),
                WITH: _contender(recorded=True, size=60),
                LONG_WITHOUT: _contender(recorded=False, size=20_000),
                LONG_WITH: _contender(recorded=True, size=20_000),
            },
            columns=(Column("p50_us", "p50, µs"), Column("p99_us", "p99, µs")),
            bars=(
                Bar("a line ≤ 12 µs", lambda of: of.median(WITH, "p50_us"), 12),
                Bar("a line of 20 kB ≤ 150 µs", lambda of: of.median(LONG_WITH, "p50_us"), 150),
            ),
        ),
    ),
)
