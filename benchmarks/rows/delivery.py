"""Row 5: delivery of a journal."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.journals import Delivery, waiting_journal
from benchmarks.runs import send_raw

__all__ = ["ROW"]

OURS = "this package's delivery process"
RAW = "raw `log_batch`, 1 000 a call"


def _ours(bench: Bench) -> Figures:
    store, points = bench.server("server"), bench.size(200_000, 10_000)
    waiting = waiting_journal(bench, store, points)
    before = store.requests()
    delivery = Delivery(waiting)
    state = delivery.watch()
    assert state.complete
    assert state.run_id is not None
    store.check_exact(state.run_id, points)
    requests = store.requests() - before
    return {
        "points_per_s": delivery.sent / delivery.sending_s,
        "sending_s": delivery.sending_s,
        "whole_s": delivery.whole_s,
        "requests": requests,
        "extra_requests": requests - points / 1000,
    }


def _raw(bench: Bench) -> Figures:
    store, points = bench.server("server"), bench.size(200_000, 10_000)
    before = store.requests()
    began = time.perf_counter()
    result = bench.run(send_raw, uri=store.uri, points=points)
    whole = time.perf_counter() - began
    store.check_exact(result["run_id"], points)
    return {
        "points_per_s": points / result["seconds"],
        "sending_s": result["seconds"],
        "whole_s": whole,
        "requests": store.requests() - before,
    }


ROW = Row(
    name="5",
    title="Delivery of 200 000 points from a journal",
    method=(
        "The process that `tracking-callbacks sync` starts delivers the journal of an offline run. The peer is a fresh "
        "process that sends the same points with `log_batch`, in lists of 1 000. Points per second are measured "
        "between the first acknowledged batch and the last; the whole time is from the start of the process to its "
        "end, including MLflow's import. Requests are counted in the server's own log, and points in the store."
    ),
    groups=(
        Group(
            title="one healthy HTTP server",
            contenders={OURS: _ours, RAW: _raw},
            columns=(
                Column("points_per_s", "points/s", 0),
                Column("sending_s", "sending, s"),
                Column("whole_s", "whole, s"),
                Column("requests", "requests", 0),
            ),
            bars=(
                Bar(
                    "≥ 1.0 × raw `log_batch(1000)` throughput",
                    lambda of: of.ratio("points_per_s", OURS, RAW),
                    1.0,
                    at_least=True,
                ),
                Bar("requests beyond points/1000 ≤ 20", lambda of: of.worst(OURS, "extra_requests"), 20),
            ),
        ),
    ),
)
