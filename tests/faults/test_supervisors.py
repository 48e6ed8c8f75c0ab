"""Jobs whose supervisor ends all of their processes at once: Slurm, a pod, systemd, a worker of Ray."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from faults.exactness import stored_runs
from processes import delivery_processes, script, wait_for
from tracking_callbacks._writing import supervisor

LOG = """
    import sys, time
    from tracking_callbacks import Delivery, MLflowTracker
    run = MLflowTracker(delivery=Delivery(wait_at_end=60)).start_run()
    for step in range(5000):
        run.log_metrics({"loss": float(step)}, step=step)
        print(step, flush=True)
        if step < 4900:
            time.sleep(0.0005)
    run.end()
    print("ended", flush=True)
    time.sleep(600)
"""
AGENT = """
    import time
    from stable_baselines3 import PPO
    from tracking_callbacks import MLflowTracker
    from tracking_callbacks.sb3 import MLflowSB3Callback
    with MLflowTracker().start_run() as run:
        PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32).learn(64, callback=MLflowSB3Callback())
        print("ended", flush=True)  # the run of the program goes on
        time.sleep(600)
"""


@pytest.fixture
def experiment(server, monkeypatch) -> str:
    """The experiment that the processes started by a test log to."""
    name = f"supervised-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    return name


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it has started, all at once, as the end of a cgroup does."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        one.suspend()
    for one in tree:
        one.kill()
    process.wait()


def read_until(process: subprocess.Popen[str], line: str) -> int:
    """Read what the process prints until it prints `line`, and return the last number before that."""
    assert process.stdout is not None
    last = -1
    while (printed := process.stdout.readline().strip()) != line:
        assert printed or process.poll() is None, process.communicate()[1]
        last = int(printed) if printed.isdigit() else last
    return last


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"])
def test_a_run_is_in_the_store_when_it_has_ended_although_its_whole_tree_is_killed(
    variable, client, experiment, tmp_path
) -> None:
    with script(LOG, cwd=tmp_path, env={variable: "1"}) as process:
        read_until(process, "ended")
        kill_tree(process)

    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(range(5000))
    assert not delivery_processes(tmp_path)


def test_an_agent_that_joined_a_run_is_in_the_store_when_learn_returns(client, experiment, tmp_path) -> None:
    with script(AGENT, cwd=tmp_path, env={"SLURM_JOB_ID": "1"}) as process:
        read_until(process, "ended")
        kill_tree(process)

    (run,) = stored_runs(client, experiment).values()
    assert client.get_metric_history(run.info.run_id, "train/loss")[-1].step == 64
    assert run.outputs.model_outputs


def test_a_tree_that_is_killed_at_any_moment_leaves_all_it_logged_to_a_sync(client, experiment, tmp_path) -> None:
    seed = random.randrange(10**6)
    stop = random.Random(seed).randrange(1, 4000)
    with script(LOG, cwd=tmp_path, env={"SLURM_JOB_ID": "1"}) as process:
        accepted = read_until(process, str(stop)) + 1
        kill_tree(process)
    sync = [sys.executable, "-m", "tracking_callbacks.cli", "sync", str(tmp_path)]
    done = subprocess.run(sync, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, (seed, done.stderr)
    (run,) = stored_runs(client, experiment).values()
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(len(steps))), seed
    assert len(steps) > accepted, seed
    assert run.info.status == "KILLED", seed
    wait_for(lambda: not delivery_processes(tmp_path), "no process is left")


def test_a_supervised_run_does_not_wait_for_a_store_that_does_not_answer(tmp_path) -> None:
    env = {"SLURM_JOB_ID": "1", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with script(LOG.replace("range(5000)", "range(10)"), cwd=tmp_path, env=env) as process:
        read_until(process, "9")
        began = time.monotonic()
        read_until(process, "ended")
        waited = time.monotonic() - began
        kill_tree(process)
        assert process.stderr is not None
        said = process.stderr.read()

    assert waited < 20
    assert "if Slurm ends this job before that, 'tracking-callbacks sync" in said


@pytest.mark.parametrize(
    ("cgroups", "expected"),
    [
        ("0::/system.slice/training.service\n", "systemd"),
        ("1:name=systemd:/system.slice/training.service\n0::/\n", "systemd"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope\n", None),
        ("9:name=systemd:/\n0::/\n", None),
    ],
)
def test_a_systemd_service_is_recognized_by_its_cgroup(cgroups, expected, tmp_path, monkeypatch) -> None:
    for variable in supervisor._BY_VARIABLE:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(supervisor, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(cgroups)
    supervisor._in_systemd_service.cache_clear()
    try:
        assert supervisor.current_supervisor() == expected
    finally:
        supervisor._in_systemd_service.cache_clear()
