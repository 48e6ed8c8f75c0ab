"""The trainer, its delivery process or both are killed at any moment (rows 7, 10 and 11 of the fault matrix)."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from faults.exactness import check_exact
from faults.proxy import Fault, running_proxy
from faults.trainers import KILLS, SCENARIOS, SOAK, Trainer, let_pass
from processes import wait_for
from tracking_callbacks._journal.layout import JournalRoot

pytestmark = pytest.mark.timeout(900 if SOAK else 180)

KILLED_WITHIN = 10.0  # seconds on an idle machine, because delivery yields to everything else that runs
STAGES = ("begin", "log_metrics", "saving", "trained", "log_model")


@pytest.mark.alone
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_trainer_killed_at_any_moment_leaves_an_exact_run_with_status_killed(
    scenario, trainers, server, client, tmp_path
) -> None:
    chance = random.Random(f"{scenario} {KILLS}")
    killed: list[tuple[Trainer, float, str]] = []
    for number in range(KILLS):
        stage = STAGES[number % len(STAGES)]
        trainer = trainers.start(
            scenario, tmp_path / f"kill-{number}", server.uri, model=f"{tmp_path.name}-{number}", pace=0.002
        )
        wait_for(lambda now=trainer, at=stage: now.reached(at) or now.poll() is not None, f"training reaches {stage}")
        let_pass(chance.uniform(0, 0.3))
        trainer.send(signal.SIGKILL)
        killed.append((trainer, time.time(), f"kill {number} at {stage}"))
        trainer.wait()

    for trainer, at, which in killed:
        trainer.delivered()
        runs = trainer.check_exact(client)
        assert len(runs) <= 1
        assert {run.info.status for run in runs} <= trainer.true_statuses(), which
        ended = trainer.reached("trained")
        for state in (trainer.journal / "delivered").glob("*.json"):
            assert ended or state.stat().st_mtime - at < KILLED_WITHIN, f"{which}: {trainer.delivery_log()}"
    assert any(trainer.returncode == -signal.SIGKILL for trainer, _, _ in killed)


# What a delivery process is doing when it is killed, named by the request that it is making.
REQUESTS = {
    "creating the run": "/runs/create",
    "sending a batch": "/runs/log-batch",
    "uploading": "/weights/weights.bin",
    "registering": "/model-versions/create",
}


def test_a_delivery_process_killed_at_any_moment_is_replaced_and_the_run_is_exact(
    trainers, server, client, tmp_path
) -> None:
    chance = random.Random(f"delivery {KILLS}")
    stages = ("starting", *REQUESTS)
    for first in range(0, KILLS, len(stages)):
        with contextlib.ExitStack() as stack:
            started = []
            for number, stage in enumerate(stages, first):
                proxy = stack.enter_context(running_proxy(server.uri, number))
                if stage in REQUESTS:  # the server gets the request before the kill or, with "late", after it
                    proxy.fault(Fault(chance.choice(["slow", "late"]), paths=(REQUESTS[stage],), seconds=2))
                trainer = trainers.start(
                    "core", tmp_path / f"kill-{number}", proxy.uri, model=f"{tmp_path.name}-{number}"
                )
                started.append((stage, proxy, trainer))
            for stage, proxy, trainer in started:
                if stage in REQUESTS:
                    wait_for(lambda hit=proxy: hit.struck.total() > 0, f"delivery is {stage}", 60)
                    let_pass(chance.uniform(0, 1.0))
                else:
                    wait_for(trainer.delivery, "delivery runs")
                    let_pass(chance.uniform(0, 2.0))
                for process in trainer.delivery():  # there are two at the moment when it starts a command
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                proxy.fault()
            for stage, _, trainer in started:
                assert trainer.wait(seconds=120) == 0, trainer.errors
                assert "delivery process ended with exit code -9" in trainer.errors, stage
                trainer.delivered()
                (run,) = trainer.check_exact(client)
                assert run.info.status == "FINISHED", stage


@pytest.mark.parametrize("moment", ["begin", "log_metrics", "trained"])
def test_a_journal_copied_from_a_dead_machine_is_delivered_by_sync(moment, trainers, server, client, tmp_path) -> None:
    trainer = trainers.start("core", tmp_path / "there", server.uri, model=tmp_path.name, pace=0.001)
    wait_for(lambda: trainer.reached(moment), f"training reaches {moment}")
    # After the training, delivery has finished before long, and a dead machine would leave nothing.
    let_pass(random.Random(moment).uniform(*(0.0, 0.05) if moment == "trained" else (0.1, 0.6)))
    (delivery,) = wait_for(trainer.delivery, "delivery runs")
    trainer.send(signal.SIGKILL)
    delivery.send_signal(signal.SIGKILL)
    trainer.wait()
    wait_for(lambda: not is_alive(delivery), "delivery is dead")
    shutil.copytree(trainer.journal, tmp_path / "here" / "journal")
    shutil.rmtree(trainer.journal)

    synced = subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", "sync", str(tmp_path / "here" / "journal")],
        cwd=tmp_path / "here", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert synced.returncode == 0, synced.stderr
    (run,) = check_exact(client, trainer.experiment, trainer.ledger, tmp_path / "downloaded")
    assert run.info.status in trainer.true_statuses()
    assert not JournalRoot(tmp_path / "here" / "journal").runs()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
