"""What the store is known to have of a journal whose delivery state was lost."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis
import mlflow
import pytest
from hypothesis import strategies as st
from packaging.version import Version

from processes import delivery_processes, stop_delivery, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.batches import Point, coalesce
from tracking_callbacks._delivery.replay import delivered_before
from tracking_callbacks._journal.records import Metrics, Params, Record, Tags, count_entries


class Stored:
    """A run in the store, by what batches brought."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def add(self, points: list[Point]) -> None:
        self.points += [point for point in points if point not in self.points[-5000:]]

    def latest(self) -> list[Point]:
        keys = {point.key: point for point in sorted(self.points, key=lambda one: (one.step, one.timestamp))}
        return list(keys.values())

    def history(self, key: str) -> list[Point]:
        found = sorted((one for one in self.points if one.key == key), key=lambda one: (one.timestamp, one.step))
        return found[:500]


def journal(count: int, *, keys: int = 3, first: int = 0) -> list[tuple[Record, int]]:
    records: list[Record] = [Params({"lr": "1"}), Tags({"a": "b", "c": "d"})]
    for step in range(first, first + count):
        value = math.nan if step % 7 == 0 else math.inf if step % 11 == 0 else step / 3
        records.append(Metrics(1000 + step, step, {f"m{key}": value + key for key in range(keys)}))
    return [(record, 10 * number) for number, record in enumerate(records, 1)]


def as_stored(point: Point) -> Point:
    largest = 1.7976931348623157e308
    return point._replace(value=point.value if math.isnan(point.value) else max(-largest, min(point.value, largest)))


@hypothesis.given(st.integers(0, 3000), st.integers(1, 4), st.integers(0, 12), st.booleans())
@hypothesis.settings(max_examples=60)
def test_nothing_is_passed_over_that_the_store_lacks(count: int, keys: int, delivered: int, others: bool) -> None:
    records, store = journal(count, keys=keys), Stored()
    if others:  # another process logs to the run
        store.add([Point("m0", 5.0, 1000 + step, step) for step in range(4000)])
    batches = list(coalesce(records))[:delivered]
    for batch in batches:
        store.add([as_stored(point) for point in batch.metrics])
    sent = max((batch.end for batch in batches if batch.end is not None), default=0)
    found = delivered_before(lambda: records, store.latest(), store.history)

    if found is not None:
        assert found.end <= sent
        assert found.entries == sum(count_entries(record) for record, end in records if end <= found.end)
    if not others and len(batches) > 2 and count > 1000:
        assert found is not None
        assert sent - found.end <= 10 * (2 * 1000 // keys + 2), "more than two batches are sent again"


def test_a_point_that_another_process_has_logged_by_chance_is_no_evidence() -> None:
    records, store = journal(3000), Stored()
    store.add([Point("m0", 2998 / 3, 1000 + 2998, 2998)])

    assert delivered_before(lambda: records, store.latest(), store.history) is None


@pytest.mark.skipif(
    Version(mlflow.__version__) < Version("3.16"),
    reason="its server takes minutes for a thousand NaN that it has already",
)
def test_a_long_journal_whose_state_was_lost_is_not_sent_again(server, client, tmp_path: Path) -> None:
    root = tmp_path / "journal"
    run = MLflowTracker(server.uri, "replay", record=False, delivery=Delivery(journal_root=root)).start_run()
    for step in range(4000):
        run.log_metrics({"a": step, "b": step / 3, "c": math.nan}, step=step)
    wait_for(lambda: run.report().pending == 0, "everything is delivered", seconds=60)
    stop_delivery(root)
    (root / run.run_key / "state.json").unlink()
    run.log_metrics({"a": 4000.0}, step=4000)
    run.end()
    report = run.flush()

    assert (report.complete, report.rejected) == (True, 0)
    assert report.delivered == 12_001
    assert [point.value for point in client.get_metric_history(run.run_id, "a")] == list(range(4001))
    assert "the store has the first 1" in (root / "delivery.log").read_text()
    assert not delivery_processes(root) or run.report().complete
