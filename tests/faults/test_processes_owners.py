"""Which owners are alive, and which session of a run decides its status (row 20 of the fault matrix)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import textwrap
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil

from faults.exactness import stored_runs
from processes import run_script, script, wait_for
from tracking_callbacks._journal.layout import JournalRoot

LOG = """
    import os, sys
    from tracking_callbacks import Delivery, MLflowTracker
    tracker = MLflowTracker(delivery=Delivery(offline={offline}, grace=60))
    run = tracker.resume_run({key!r}) if {key!r} else tracker.start_run(tags={{"team": "blue"}})
    for step in range({first}, {first} + 50):
        run.log_metrics({{"loss": 1 / (step + 1)}}, step=step)
    run.log_params({{"lr": 0.1, "part_{first}": 1}})
    print(run.run_key, os.getpid(), flush=True)
"""


def log(then: str, *, first: int = 0, key: str = "", offline: bool = False) -> str:
    return textwrap.dedent(LOG.format(first=first, key=key, offline=offline)) + textwrap.dedent(then)


def check_points(client: Any, run: Any, count: int) -> None:
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 1 / (step + 1)) for step in range(count)]


def test_a_zombie_counts_as_dead(trainers, server, client, tmp_path) -> None:
    trainer = trainers.start("core", tmp_path / "trainer", server.uri, trouble="pause")
    wait_for(lambda: trainer.reached("paused"), "training reaches its third step")
    trainer.send(signal.SIGKILL)
    trainer.delivered()

    assert psutil.Process(trainer.pid).status() == psutil.STATUS_ZOMBIE
    (run,) = trainer.check_exact(client)
    assert run.info.status == "KILLED"


def container(code: str, *, cwd: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run Python code as the first process of a new pid namespace."""
    return script(code, cwd=cwd, under=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))


def test_containers_with_one_journal_root_do_not_declare_each_others_trainers_dead(
    server, client, tmp_path, monkeypatch
) -> None:
    experiment = f"containers-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    wait = "sys.stdin.readline(); run.log_metrics({'loss': 1 / 51}, step=50); run.end(); run.flush(60)"
    root = JournalRoot(tmp_path / ".tracking_callbacks")
    with container(log(wait), cwd=tmp_path) as online, container(log(wait, offline=True), cwd=tmp_path) as offline:
        (key, pid), (offline_key, offline_pid) = (one.stdout.readline().split() for one in (online, offline))
        assert pid == offline_pid == "1"
        with container(log("run.end(); run.flush(60)"), cwd=tmp_path) as other:
            other_key, _ = other.stdout.readline().split()
            assert other.wait(timeout=60) == 0, other.stderr.read()
        wait_for(lambda: key in stored_runs(client, experiment), "the first container's run is there")
        runs = stored_runs(client, experiment)
        assert runs[other_key].info.status == "FINISHED"
        assert runs[key].info.status == "RUNNING"
        assert offline_key not in runs
        assert root.run(offline_key).read_state() is None
        for process in (online, offline):
            _, errors = process.communicate("\n", timeout=60)
            assert process.returncode == 0, errors

    synced = run_script("from tracking_callbacks.cli import main; main(['sync'])", cwd=tmp_path)
    assert synced.returncode == 0, synced.stderr
    runs = stored_runs(client, experiment)
    assert set(runs) == {key, offline_key, other_key}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for run_key, run in runs.items():
        check_points(client, run, 50 if run_key == other_key else 51)


def dead_session(experiment: str, server: Any, folder: Path) -> str:
    """Leave the journal of a killed session undelivered, and return the key of its run."""
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    died = run_script(log("os.kill(os.getpid(), 9)", offline=True), cwd=folder, env=env)
    assert died.returncode == -signal.SIGKILL
    return died.stdout.split()[0]


def test_the_resuming_session_decides_the_status_while_the_first_session_is_undelivered(
    server, client, tmp_path
) -> None:
    experiment = f"resumed-{uuid.uuid4().hex[:8]}"
    key = dead_session(experiment, server, tmp_path)
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    resumed = run_script(log("run.end()", first=50, key=key), cwd=tmp_path, env=env)

    assert resumed.returncode == 0, resumed.stderr
    (run,) = stored_runs(client, experiment).values()
    assert (run.info.status, run.data.tags["tracking_callbacks.run_key"]) == ("FINISHED", key)
    assert run.data.params == {"lr": "0.1", "part_0": "1", "part_50": "1"}
    check_points(client, run, 100)


def test_a_first_session_delivered_after_the_resuming_one_does_not_change_the_status(server, client, tmp_path) -> None:
    """A machine dies, another machine resumes the run, and the first machine's journal turns up later."""
    experiment = f"late-{uuid.uuid4().hex[:8]}"
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    key = dead_session(experiment, server, tmp_path)
    shutil.move(tmp_path / ".tracking_callbacks", tmp_path / "first-machine")
    resumed = run_script(log("run.end()", first=50, key=key), cwd=tmp_path, env=env)
    assert resumed.returncode == 0, resumed.stderr
    (before,) = stored_runs(client, experiment).values()
    synced = run_script("from tracking_callbacks.cli import main; main(['sync', 'first-machine'])", cwd=tmp_path)

    assert synced.returncode == 0, synced.stderr
    (run,) = stored_runs(client, experiment).values()
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)
    assert run.data.params == {"lr": "0.1", "part_0": "1", "part_50": "1"}
    assert run.data.tags["team"] == "blue"
    check_points(client, run, 100)
