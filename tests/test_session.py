"""Stamps, staging, and a journal folder that cannot be written."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._journal.frames import read_chunk
from tracking_callbacks._journal.owner import Owner, OwnerWatch, current_owner
from tracking_callbacks._runs import run as run_module
from tracking_callbacks._writing.clock import MetricClock
from tracking_callbacks._writing.snapshots import snapshot

values = st.sampled_from([0.0, 1.0, -0.0, math.nan, math.inf])


@given(st.lists(st.tuples(st.integers(0, 2), st.dictionaries(st.sampled_from("ab"), values, min_size=1)), max_size=200))
def test_no_two_points_are_identical_to_the_store(calls: list[tuple[int, dict[str, float]]]) -> None:
    clock = MetricClock()
    seen = set()
    for step, points in calls:
        stamp = clock.stamp(step, points)
        for key, value in points.items():
            identity = (key, stamp, step, None if math.isnan(value) else value)
            assert identity not in seen
            seen.add(identity)


def test_stamps_follow_the_clock_when_it_is_set_back(monkeypatch) -> None:
    import tracking_callbacks._writing.clock as clock_module

    clock = MetricClock()
    monkeypatch.setattr(clock_module, "now_ms", lambda: 10_000_000)
    first = clock.stamp(0, {"a": 1.0})
    monkeypatch.setattr(clock_module, "now_ms", lambda: 9_999_500)
    slightly_back = clock.stamp(1, {"a": 1.0})
    monkeypatch.setattr(clock_module, "now_ms", lambda: 1_000_000)
    an_hour_back = clock.stamp(2, {"a": 1.0})

    assert (first, slightly_back, an_hour_back) == (10_000_000, 10_000_000, 1_000_000)


def test_a_snapshot_does_not_change_with_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "weights.safetensors").write_bytes(b"weights")
    (source / "inner" / "state.json").write_text("before")
    snapshot(source, tmp_path / "kept" / "copy")
    (source / "inner" / "state.json").write_text("after!")
    (source / "weights.safetensors").unlink()

    assert (tmp_path / "kept" / "copy" / "inner" / "state.json").read_text() == "before"
    assert (tmp_path / "kept" / "copy" / "weights.safetensors").read_bytes() == b"weights"


def test_safetensors_files_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 1000)
    snapshot(tmp_path / "a.safetensors", tmp_path / "kept" / "a.safetensors")

    assert os.path.samefile(tmp_path / "a.safetensors", tmp_path / "kept" / "a.safetensors")


def test_a_journal_root_that_cannot_be_used_is_replaced_with_a_warning(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").touch()
    run = MLflowTracker(
        "http://127.0.0.1:9", delivery=Delivery(journal_root=tmp_path / "file" / "below", offline=True)
    ).start_run()
    run.log_metrics({"loss": 1.0})
    run.end()

    assert "cannot be used" in caplog.text
    assert run.report().pending == 1
    assert (tmp_path / "temporary").is_dir()


def test_a_process_is_identified_by_more_than_its_pid() -> None:
    here = current_owner()
    reused = Owner(here.boot_id, here.pid_namespace, here.pid, here.start_ticks + 1)
    elsewhere = Owner("another boot", here.pid_namespace, here.pid, here.start_ticks)

    assert here.is_local()
    assert OwnerWatch(here).alive()
    assert not OwnerWatch(reused).alive()
    assert not elsewhere.is_local()


@pytest.mark.skipif(sys.platform != "linux", reason="zombies are recognised by pidfd on Linux")
def test_a_zombie_counts_as_dead() -> None:
    import tracking_callbacks._journal.owner as owner

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = owner._owner_of(child.pid)
    watch = OwnerWatch(identity)
    alive = watch.alive()
    child.kill()
    wait_for(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z", "the child is a zombie")

    assert alive
    assert not watch.alive()
    assert not OwnerWatch(identity).alive()
    child.communicate()


def test_metrics_of_another_thread_do_not_wait_for_a_copy_and_the_end_does(tmp_path, monkeypatch) -> None:
    copying, released, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(source: Path, target: Path) -> None:
        copying.set()
        assert released.wait(30)
        snapshot(source, target)

    monkeypatch.setattr(run_module, "snapshot", slow)
    (tmp_path / "large.bin").write_bytes(b"x")
    run = MLflowTracker("http://127.0.0.1:9", delivery=Delivery(offline=True), record=False).start_run()
    copier = threading.Thread(target=run.log_artifact, args=[tmp_path / "large.bin"])
    copier.start()
    assert copying.wait(30)
    logger = threading.Thread(target=run.log_metrics, args=[{"loss": 1.0}])
    logger.start()
    logger.join(30)
    logged_meanwhile = not logger.is_alive() and not released.is_set()
    ender = threading.Thread(target=lambda: (run.end(), ended.set()))
    ender.start()
    ended_too_early = ended.wait(0.2)
    released.set()
    for thread in (copier, ender):
        thread.join(30)

    journal = run.journal.root.run(run.run_key).journals()[0]
    kinds = [type(record).__name__ for record, _ in read_chunk(journal, 0, complete=True).records]
    assert logged_meanwhile
    assert not ended_too_early
    assert kinds[-3:] == ["Metrics", "Artifact", "RunEnded"]
