"""Batches: as few requests as MLflow's limits allow, in order; only whole records are acknowledged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracking_callbacks._delivery.batches import Batch, coalesce
from tracking_callbacks._journal.records import Artifact, Metrics, Params, Record, RunEnded, Tags, count_entries


def numbered(records: list[Record]) -> list[tuple[Record, int]]:
    return [(record, index + 1) for index, record in enumerate(records)]


def check_limits(batch: Batch) -> None:
    assert len(batch.metrics) <= 1000
    assert len(batch.params) <= 100
    assert len(batch.tags) <= 100
    assert len(batch) <= 1000
    assert batch.size <= 1_000_000 or len(batch) == 1


def test_a_thousand_points_make_one_request() -> None:
    batches = list(coalesce(numbered([Metrics(i, i, {"a": 1.0, "b": 2.0}) for i in range(500)])))

    assert [len(batch) for batch in batches] == [1000]
    assert batches[0].end == 500


def test_a_record_split_over_two_batches_is_acknowledged_by_the_second() -> None:
    batches = list(coalesce(numbered([Metrics(0, 0, {f"m{i}": 1.0 for i in range(1500)})])))

    assert [(len(batch), batch.end) for batch in batches] == [(1000, None), (500, 1)]


def test_two_values_of_one_param_go_into_two_requests_in_order() -> None:
    batches = list(coalesce(numbered([Params({"lr": "1"}), Params({"lr": "1"}), Params({"lr": "2"})])))

    assert [(batch.params, batch.end) for batch in batches] == [({"lr": "1"}, 2), ({"lr": "2"}, 3)]


def test_the_later_of_two_tags_wins() -> None:
    (batch,) = coalesce(numbered([Tags({"a": "1"}), Tags({"a": "2"})]))

    assert batch.tags == {"a": "2"}


def test_large_texts_are_spread_over_requests() -> None:
    batches = list(coalesce(numbered([Params({f"p{i}": "🚀" * 6000}) for i in range(100)])))

    for batch in batches:
        check_limits(batch)
    assert sum(len(batch.params) for batch in batches) == 100


def test_records_of_other_kinds_are_only_acknowledged() -> None:
    (batch,) = coalesce(numbered([Artifact("staged/x"), RunEnded(1, "FINISHED")]))

    assert (len(batch), batch.end) == (0, 2)


texts = st.dictionaries(
    st.sampled_from(["a", "b", "c", *(f"k{i}" for i in range(150))]), st.text(max_size=5), max_size=120
)
kinds = st.one_of(
    st.builds(
        Metrics, st.integers(0, 9), st.integers(0, 9), st.dictionaries(st.text(max_size=3), st.floats(), max_size=40)
    ),
    st.builds(Params, texts),
    st.builds(Tags, texts),
)


@given(st.lists(kinds, max_size=30))
def test_nothing_is_lost_or_reordered_within_the_limits(records: list[Record]) -> None:
    batches = list(coalesce(numbered(records)))

    for batch in batches:
        check_limits(batch)
    sent = [record for record in records if isinstance(record, (Metrics, Params, Tags))]
    assert sum(batch.entries for batch in batches) == sum(count_entries(record) for record in sent)
    points = [(p.key, p.step) for batch in batches for p in batch.metrics]
    assert points == [(key, r.step) for r in records if isinstance(r, Metrics) for key in r.metrics]
    ends = [batch.end for batch in batches if batch.end is not None]
    assert ends == sorted(ends)
    assert not records or ends[-1] == len(records)
    first: dict[str, str] = {}
    for batch in batches:
        for name, text in batch.params.items():
            first.setdefault(name, text)
    expected: dict[str, str] = {}
    for record in records:
        if isinstance(record, Params):
            for name, text in record.params.items():
                expected.setdefault(name, text)
    assert first == expected
