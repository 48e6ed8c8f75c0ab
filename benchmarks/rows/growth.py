"""Row 7: what grows with a run."""

from __future__ import annotations

import time

import psutil

from benchmarks.bench import Bench, delivery_processes, wait_for
from benchmarks.comparison import Bar, Column, Figures, Group, Row, Samples
from benchmarks.runs import grow, grow_delivered

__all__ = ["ROW"]

OURS = "this package"
MARKS = (10**3, 10**4, 10**5, 10**6)


def _calls(bench: Bench) -> Figures:
    records = bench.size(10**6, 10**4)
    figures = bench.run(grow, uri="http://127.0.0.1:9", records=records)
    return figures | {
        "growth": figures[f"p50_us_{records}"] / figures[f"p50_us_{MARKS[0]}"],
        "rss_growth_mb": figures[f"rss_mb_{records}"] - figures[f"rss_mb_{MARKS[0]}"],
    }


def _memory(bench: Bench) -> Figures:
    store = bench.server("server")
    child = bench.start(grow_delivered, uri=store.uri, records=bench.size(10**6, 10**4))
    wait_for(child.said, "all records are logged", seconds=300)
    (delivery,) = delivery_processes(child.folder)
    seen = []
    deadline = time.monotonic() + bench.size(60, 5)
    while time.monotonic() < deadline:
        seen.append(_resident_mb(delivery))
        time.sleep(0.5)
    words = child.said()
    assert words is not None
    assert child.running()
    child.kill()
    fifth = max(len(seen) // 5, 1)
    return {
        "trainer_before_mb": words["trainer_before_mb"],
        "trainer_after_mb": words["trainer_after_mb"],
        "delivery_before_mb": max(seen[:fifth]),
        "delivery_after_mb": max(seen[-fifth:]),
        "growth_mb": max(seen[-fifth:]) - max(seen[:fifth]),
        "delivered": words["delivered"],
    }


def _resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def _largest(of: Samples, figure: str) -> float:
    return of.worst(OURS, figure)


ROW = Row(
    name="7",
    title="Growth",
    method=(
        "Calls of five metrics, offline, in one process: the p50 of the thousand calls before each mark, and the "
        "memory of the process at that mark. Then a million records are logged at once while a delivery process sends "
        "them to an HTTP server: its memory in the first and the last fifth of a minute of sending. (The five million "
        "points would take a quarter of an hour, so it is stopped after that minute.)"
    ),
    groups=(
        Group(
            title="a call, and the trainer",
            contenders={OURS: _calls},
            columns=(
                *(Column(f"p50_us_{mark}", f"p50 at {f'{mark:,}'.replace(',', ' ')}, µs") for mark in MARKS),
                Column("rss_mb_1000", "memory at 1 000, MB"),
                Column("rss_growth_mb", "grown at 1 000 000, MB"),
                Column("bytes", "bytes per record", 0),
            ),
            bars=(
                Bar(
                    "a call costs the same: p50 at the end ≤ 1.2 × p50 at 1 000",
                    lambda of: of.median(OURS, "growth"),
                    1.2,
                ),
                Bar("trainer memory flat: grown ≤ 5 MB", lambda of: _largest(of, "rss_growth_mb"), 5),
                Bar("bytes per record of five metrics", lambda of: of.median(OURS, "bytes")),
            ),
        ),
        Group(
            title="the delivery process while it sends for a minute",
            contenders={OURS: _memory},
            columns=(
                Column("trainer_before_mb", "trainer before, MB"),
                Column("trainer_after_mb", "trainer after, MB"),
                Column("delivery_before_mb", "delivery, first fifth, MB"),
                Column("delivery_after_mb", "delivery, last fifth, MB"),
                Column("delivered", "delivered", 0),
            ),
            bars=(Bar("delivery memory flat: grown ≤ 10 MB", lambda of: _largest(of, "growth_mb"), 10),),
        ),
    ),
)
