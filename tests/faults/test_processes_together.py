"""Many trainers at once, forked children, and a long server outage (rows 15, 16, 17 and 19 of the fault matrix)."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter

import pytest
from mlflow import MlflowClient

from faults.exactness import stored_runs
from faults.trainers import KILLS, SOAK, let_pass
from processes import delivery_processes, free_port, run_script, stop_delivery, wait_for

pytestmark = pytest.mark.timeout(1800 if SOAK else 180)


def test_trainers_with_one_journal_root_are_each_delivered_once(trainers, server, client, tmp_path) -> None:
    shared = tmp_path / "journal"
    environment = {"TRACKING_CALLBACKS_JOURNAL": str(shared)}
    started = [
        trainers.start(
            "core", tmp_path / f"trainer-{n}", server.uri, environment=environment, model=f"{tmp_path.name}-{n}"
        )
        for n in range(16 if SOAK else 6)
    ]

    for trainer in started:
        assert trainer.wait(150) == 0, trainer.errors
    wait_for(lambda: not delivery_processes(shared), "delivery finishes")
    for trainer in started:
        (run,) = trainer.check_exact(client)
        assert run.info.status == "FINISHED"
    closed = Counter(re.findall(r"session (\d+) closed", (shared / "delivery.log").read_text()))
    assert len(closed) == len(started)
    assert set(closed.values()) == {1}


@pytest.mark.parametrize("round_", range(4 if SOAK else 1))
def test_kills_during_the_cold_start_of_eight_trainers_break_neither_store_nor_runs(round_, trainers, tmp_path) -> None:
    chance = random.Random(f"cold {round_}")
    started = [trainers.start("core", tmp_path / "project", "", model=f"model-{n}", pace=0.03) for n in range(8)]
    store = tmp_path / "project" / "mlflow.db"
    victims: list[object] = []

    def kill_one() -> bool:
        alive = [trainer for trainer in started if trainer.poll() is None and trainer not in victims]
        deliveries = delivery_processes(tmp_path)
        if len(victims) % 3 == 0 and alive:  # one trainer and two delivery processes out of every three victims
            trainer = chance.choice(alive)
            trainer.send(signal.SIGKILL)
            victims.append(trainer)
        elif deliveries:
            process = chance.choice(deliveries)
            process.send_signal(signal.SIGKILL)
            victims.append(process)
        else:
            return False
        return True

    for _ in range(min(KILLS, 5)):
        let_pass(chance.uniform(0.2, 2.5))
        wait_for(kill_one, "there is a process to kill")
    for trainer in started:
        assert trainer.wait(150) in ((-signal.SIGKILL,) if trainer in victims else (0,)), trainer.errors
    # If a trainer and its delivery process were both killed, the next delivery process delivers the run.
    started[0].delivered(120)
    synced = run_script("from tracking_callbacks.cli import main; main(['sync'])", cwd=tmp_path / "project")

    assert synced.returncode == 0, synced.stderr
    client = MlflowClient(f"sqlite:///{store}", f"sqlite:///{store}")
    for trainer in started:
        (run,) = trainer.check_exact(client)
        assert run.info.status in trainer.true_statuses()
    assert not list(store.parent.glob(".*building*"))


MANY = 1_000_000 if SOAK else 100_000
ABSENT = f"""
    import os
    from tracking_callbacks import Delivery, MLflowTracker
    def rss():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    run = MLflowTracker(delivery=Delivery(flush_timeout=0.1)).start_run()
    run.log_metrics({{"warm": 1.0}})
    before = rss()
    for step in range({MANY} // 5):
        run.log_metrics({{f"metric-{{n}}": step / (n + 1) for n in range(5)}}, step=step)
    print(rss() - before)
    run.end()
"""


def test_a_long_server_outage_costs_the_trainer_no_memory_and_no_point(server, client, tmp_path) -> None:
    experiment = f"absent-{uuid.uuid4().hex[:8]}"
    env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "MLFLOW_EXPERIMENT_NAME": experiment}
    done = run_script(ABSENT, cwd=tmp_path, env=env)
    stop_delivery(tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 * 1024, "kilobytes"
    synced = subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", "sync", "--tracking-uri", server.uri],
        cwd=tmp_path, capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip

    assert synced.returncode == 0, synced.stderr
    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == "FINISHED"
    for n in range(5):
        points = client.get_metric_history(run.info.run_id, f"metric-{n}")
        assert sorted((point.step, point.value) for point in points) == [
            (step, step / (n + 1)) for step in range(MANY // 5)
        ]
        assert run.info.start_time <= min(point.timestamp for point in points)
        assert max(point.timestamp for point in points) <= run.info.end_time


FORKING = {
    "os.fork in user code": ("core", {"trouble": "fork"}),
    "os.fork in a training step": ("huggingface", {"trouble": "fork"}),
    "DataLoader workers": ("huggingface", {"arguments": {"dataloader_num_workers": 2}}),
    "os.fork in an environment's step": ("sb3", {"trouble": "fork"}),
    "SubprocVecEnv": ("sb3", {"subprocesses": True}),
}


def test_forked_children_neither_deliver_nor_corrupt_nor_hang(trainers, server, client, tmp_path) -> None:
    started = {
        which: trainers.start(scenario, tmp_path / f"forking-{number}", server.uri, **plan)
        for number, (which, (scenario, plan)) in enumerate(FORKING.items())
    }

    for which, trainer in started.items():
        assert trainer.wait(120) == 0, (which, trainer.errors)
        trainer.delivered()
        (run,) = trainer.check_exact(client)
        assert run.info.status == "FINISHED", which
        assert trainer.errors.count("Traceback") == 0, (which, trainer.errors)
