"""Stamps, staging, and a journal folder that cannot be written."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import delivery_processes, run_script, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._journal.frames import read_chunk
from tracking_callbacks._journal.owner import Owner, OwnerWatch, current_owner
from tracking_callbacks._journal.records import now_ms
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


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "state.json"])
def test_a_snapshot_does_not_change_when_its_source_is_written_in_place(tmp_path: Path, name: str) -> None:
    source, other, kept = tmp_path / name, tmp_path / "other", tmp_path / "kept" / name
    source.write_bytes(b"first")
    other.write_bytes(b"later")
    snapshot(source, kept)
    shutil.copyfile(other, source)
    with open(source, "r+b") as file:
        file.write(b"L")

    assert kept.read_bytes() == b"first"


FORKING = """
    import logging, os
    from tracking_callbacks import MLflowTracker

    logging.basicConfig(format="%(message)s")
    run = MLflowTracker().start_run()
    run.log_metrics({"loss": 1.0})
    for _ in range(2):
        child = os.fork()
        if child == 0:
            for step in range(60):
                run.log_metrics({"inner": step}, step=step)
            run.log_params({"a": 1})
            run.set_tags({"b": 2})
            run.log_text("c", "c.txt")
            run.log_checkpoint(__import__("sys").executable)
            os._exit(0 if run.report().dropped >= 64 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    before = run.report().dropped
    run.end()
    print(run.run_id, before, run.flush().dropped, run.report().delivered)
"""


def test_what_forked_processes_log_is_counted_as_dropped_and_each_warns_once(server, client, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    done = run_script(FORKING, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    run_id, *counts = done.stdout.split()
    run = client.get_run(run_id)

    assert counts == ["128", "128", "1"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["tracking_callbacks.dropped_in_forks"] == "128"
    assert run.data.metrics == {"loss": 1.0}
    assert done.stderr.count("join_run(run_id)") == 2


def test_a_clock_that_is_set_back_gives_no_negative_duration(tracker, client, monkeypatch) -> None:
    run = tracker.start_run()
    run.log_metrics({"loss": 1.0})
    hour_back = now_ms() - 3_600_000
    monkeypatch.setattr("tracking_callbacks._writing.session.now_ms", lambda: hour_back)
    run.end()
    run.flush()
    info = client.get_run(run.run_id).info

    assert info.status == "FINISHED"
    assert 0 <= info.end_time - info.start_time < 60_000


TRAINING = """
    import os, signal, sys
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
    from tracking_callbacks.sb3 import MLflowSB3Callback

    class Kill(BaseCallback):
        def _on_step(self):
            if self.num_timesteps >= 96 and "killed" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
            return True

    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1)
    evaluation = EvalCallback(gymnasium.make("CartPole-v1"), eval_freq=32, n_eval_episodes=1, verbose=0)
    agent.learn(128, callback=[MLflowSB3Callback(log_model="best"), evaluation, Kill()])
"""


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_a_training_run_leaves_nothing_in_the_temp_folder(tmp_path: Path, end: str) -> None:
    temporary, root = tmp_path / "temporary", tmp_path / "journal"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary), "TRACKING_CALLBACKS_JOURNAL": str(root)}
    code = f"import sys; sys.argv.append({end!r})\n" + textwrap.dedent(TRAINING)
    done = run_script(code, cwd=tmp_path, env=env)
    wait_for(lambda: not delivery_processes(root), "delivery ends", 120)

    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr
    assert [path.name for path in temporary.iterdir() if "tracking_callbacks" in path.name] == []
    assert sorted(path.name for path in root.iterdir()) == [".gitignore", ".lock", "delivered", "delivery.log"]
    assert [path.name for path in tmp_path.glob(".*lock")] == []


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
