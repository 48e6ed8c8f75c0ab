"""Row 10: a journal that is sent again."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.journals import Delivery, waiting_journal

__all__ = ["ROW"]

FIRST = "first delivery"
REPLAY = "delivery, when the store has half"


def _deliver(bench: Bench, *, crash: bool) -> Figures:
    store, points = bench.server("server"), bench.size(200_000, 10_000)
    waiting = waiting_journal(bench, store, points)
    there = 0
    if crash:
        Delivery(waiting).watch(until=points // 2)  # and kill it there
        before = waiting.state()
        assert before is not None
        assert before.run_id is not None
        there = store.count_points(before.run_id)[0]
        waiting.forget_acknowledgements()
    delivery = Delivery(waiting)
    state = delivery.watch()
    assert state.complete
    assert state.run_id is not None
    found, own = store.count_points(state.run_id)
    return {
        "whole_s": delivery.whole_s,
        "points_per_s": points / delivery.sending_s,
        "there": there,
        "doubled": found - own,
        "missing": points - own,
    }


ROW = Row(
    name="10",
    title="200 000 points sent again after a crash",
    method=(
        "Delivery is killed (SIGKILL) when half of the points are acknowledged, and the file that says so is deleted: "
        "the next delivery process finds the run by its key, asks the store what it has, and sends the rest. The time "
        "is that process's whole life, compared with a first delivery of another journal of the same size. The points "
        "are counted in the store."
    ),
    groups=(
        Group(
            title="HTTP server",
            contenders={
                FIRST: lambda bench: _deliver(bench, crash=False),
                REPLAY: lambda bench: _deliver(bench, crash=True),
            },
            columns=(
                Column("whole_s", "whole, s"),
                Column("points_per_s", "points/s", 0),
                Column("there", "there before", 0),
                Column("doubled", "doubled", 0),
                Column("missing", "missing", 0),
            ),
            bars=(
                Bar("no doubled point", lambda of: of.worst(REPLAY, "doubled"), 0),
                Bar("no missing point", lambda of: of.worst(REPLAY, "missing"), 0),
                Bar("time ≤ 3 × a first delivery", lambda of: of.ratio("whole_s", REPLAY, FIRST), 3),
            ),
        ),
    ),
)
