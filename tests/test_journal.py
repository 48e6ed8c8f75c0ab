"""Append and read: torn tails, damage in the middle, large records."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking_callbacks._journal.frames import JournalWriter, read_chunk, read_last_words
from tracking_callbacks._journal.layout import write_atomically
from tracking_callbacks._journal.records import Metrics, Params, Record, RunEnded, decode, encode


def write(path: Path, records: list[Record]) -> list[int]:
    """Write a journal and return the offset of each record's end."""
    writer = JournalWriter(path)
    ends = []
    for record in records:
        writer.append(record)
        ends.append(writer.position)
    writer.close()
    return ends


def read_all(path: Path, *, complete: bool = True, limit: int = 1 << 20) -> tuple[list[Record], int]:
    """Read a journal as delivery does, chunk by chunk, and count the damage."""
    records: list[Record] = []
    offset = damaged = 0
    for _ in range(10_000):
        chunk = read_chunk(path, offset, complete=complete, limit=limit)
        records += [record for record, _ in chunk.records]
        damaged += chunk.damaged
        offset = chunk.end
        if chunk.at_end:
            return records, damaged
    raise AssertionError("the reader does not come to an end")


def points(count: int) -> list[Record]:
    return [Metrics(index, index, {"loss": index / 7, "other": -index}) for index in range(count)]


def test_records_come_back_as_they_were(tmp_path) -> None:
    records = [*points(100), Params({"a": "ü🚀"}), RunEnded(1, "FAILED")]
    write(tmp_path / "j", records)

    assert read_all(tmp_path / "j") == (records, 0)
    assert read_all(tmp_path / "j", limit=100) == (records, 0)


def test_floats_that_json_cannot_represent_survive() -> None:
    record = decode(encode(Metrics(1, 2, {"nan": math.nan, "inf": math.inf, "zero": -0.0})))

    assert isinstance(record, Metrics)
    assert math.isnan(record.metrics["nan"])
    assert record.metrics["inf"] == math.inf
    assert math.copysign(1, record.metrics["zero"]) == -1


def test_a_record_larger_than_a_chunk_is_read_whole(tmp_path) -> None:
    records = [*points(3), Params({"big": "x" * 100_000}), *points(3)]
    write(tmp_path / "j", records)

    assert read_all(tmp_path / "j", limit=64) == (records, 0)


def test_a_journal_cut_at_every_byte_of_its_last_record_keeps_the_others(tmp_path) -> None:
    records = points(5)
    ends = write(tmp_path / "j", records)
    whole = (tmp_path / "j").read_bytes()
    for length in range(ends[-2], ends[-1]):
        (tmp_path / "cut").write_bytes(whole[:length])

        assert read_all(tmp_path / "cut") == (records[:-1], int(length > ends[-2]))
        live = read_chunk(tmp_path / "cut", 0, complete=False)
        assert (len(live.records), live.end, live.damaged) == (4, ends[-2], 0)


@settings(max_examples=500)
@given(data=st.data())
def test_damage_costs_only_the_records_it_hits(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("damage") / "j"
    records = points(30)
    ends = write(path, records)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="flip"):
        content[at] ^= data.draw(st.integers(1, 255))
        hit = {next(index for index, end in enumerate(ends) if at < end)}
    else:
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        hit = {next(index for index, end in enumerate(ends) if at < end)}
    path.write_bytes(bytes(content))
    found, damaged = read_all(path, limit=data.draw(st.sampled_from([50, 200, 1 << 20])))

    survivors = [record for index, record in enumerate(records) if index not in hit]
    assert [record for record in found if record in survivors] == survivors
    assert damaged <= 2
    assert damaged or found == records


def test_a_record_of_an_unknown_kind_is_skipped_and_counted(tmp_path) -> None:
    import struct
    from zlib import crc32

    import msgspec

    write(tmp_path / "j", points(1))
    payload = msgspec.msgpack.encode(["of the future", 1])
    with open(tmp_path / "j", "ab") as journal:
        journal.write(struct.pack(">4sII", b"\xf5TC\x9e", len(payload), crc32(payload)) + payload)
    records, damaged = read_all(tmp_path / "j")

    assert (len(records), damaged) == (1, 1)


def test_a_write_that_fails_leaves_the_journal_whole(tmp_path) -> None:
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = JournalWriter(tmp_path / "j")
    writer.append(points(1)[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.position + 20, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.append(Params({"a": "x" * 100}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    writer.append(points(2)[1])
    writer.close()

    assert read_all(tmp_path / "j") == (points(2), 0)


def test_the_last_record_is_kept_when_the_journal_has_no_space_left(tmp_path) -> None:
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = JournalWriter(tmp_path / "j.journal")
    for record in points(20):
        writer.append(record)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.position, hard))
    try:
        writer.append_last(RunEnded(7, "FINISHED"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    writer.close()

    assert read_all(tmp_path / "j.journal") == (points(20), 0)
    assert read_last_words(tmp_path / "j.journal") == RunEnded(7, "FINISHED")


def test_the_last_record_is_in_the_journal_when_there_is_space(tmp_path) -> None:
    writer = JournalWriter(tmp_path / "j.journal")
    writer.append_last(RunEnded(7, "FINISHED"))
    writer.close()

    assert read_all(tmp_path / "j.journal") == ([RunEnded(7, "FINISHED")], 0)
    assert read_last_words(tmp_path / "j.journal") is None


def test_only_its_user_may_read_a_journal(tmp_path) -> None:
    write(tmp_path / "j", points(1))

    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("j*")} == {0}


def test_nothing_is_appended_to_a_closed_journal(tmp_path) -> None:
    writer = JournalWriter(tmp_path / "j")
    writer.close()

    with pytest.raises(ValueError, match="closed"):
        writer.append(points(1)[0])


def test_a_file_may_be_replaced_by_several_at_a_time(tmp_path) -> None:
    """Threads have one pid, as the first processes of two containers have."""
    contents = [bytes([number]) * 50_000 for number in range(4)]

    def replace(content: bytes) -> None:
        for _ in range(50):
            write_atomically(tmp_path / "state.json", content)

    with ThreadPoolExecutor(len(contents)) as threads:
        list(threads.map(replace, contents))

    assert (tmp_path / "state.json").read_bytes() in contents
    assert [path.name for path in tmp_path.glob(".*state*")] == []
