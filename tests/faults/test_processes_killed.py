"""The trainer, its delivery process, or both, are killed at any moment (rows 7, 10 and 11 of the fault matrix)."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from faults.exactness import check_exact
from faults.trainers import KILLS, SCENARIOS, SOAK, Trainer, let_pass
from processes import wait_for
from tracking_callbacks.folders import JournalRoot, RunState

pytestmark = pytest.mark.timeout(900 if SOAK else 180)

KILLED_WITHIN = 10.0  # seconds, of a machine that is not busy: delivery steps aside for whatever else runs
STAGES = ("begin", "log_metrics", "saving", "trained", "log_model")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_trainer_killed_at_any_moment_is_killed_in_the_store_and_exact(
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


def at_stage(state: RunState | None, stage: str) -> bool:
    """Return whether delivery is about to do, or is doing, what `stage` names."""
    if state is None:
        return False
    sessions = state.sessions.values()
    match stage:
        case "creating the run":
            return "run" in state.attempts
        case "sending a batch":
            return state.run_id is not None
        case "uploading":
            return any(session.files for session in sessions)
        case "making the model" | "registering":
            return any(key.startswith("model:") for key in state.attempts)
    return False


def test_a_delivery_process_killed_at_any_moment_is_replaced_and_exact(trainers, server, client, tmp_path) -> None:
    chance = random.Random(f"delivery {KILLS}")
    stages = ("starting", "creating the run", "sending a batch", "uploading", "registering")
    for first in range(0, KILLS, len(stages)):
        started = []
        for number, stage in enumerate(stages, first):
            model = f"{tmp_path.name}-{number}"
            started.append((stage, trainers.start("core", tmp_path / f"kill-{number}", server.uri, model=model)))
        waiting = dict(started)
        killed: dict[str, int] = {}

        def kill_those_at_their_stage(waiting=waiting, killed=killed) -> bool:
            for stage, trainer in list(waiting.items()):
                assert trainer.poll() is None, f"{stage} was over too soon"
                (folder, *_) = [*JournalRoot(trainer.journal).runs(), None]
                delivery = trainer.delivery()
                if delivery and folder and (stage == "starting" or at_stage(folder.read_state(), stage)):
                    let_pass(chance.uniform(0, 0.2 if stage != "starting" else 2.0))
                    for process in delivery:
                        killed[stage] = process.pid
                        process.send_signal(signal.SIGKILL)
                    del waiting[stage]
            return not waiting

        wait_for(kill_those_at_their_stage, f"delivery comes to {set(waiting)}", seconds=60)
        for stage, trainer in started:
            assert trainer.wait(seconds=120) == 0, trainer.errors
            trainer.delivered()
            (run,) = trainer.check_exact(client)
            assert run.info.status == "FINISHED", stage
            assert killed[stage] is not None


@pytest.mark.parametrize("moment", ["begin", "log_metrics", "trained"])
def test_a_journal_copied_from_a_dead_machine_is_delivered_by_sync(moment, trainers, server, client, tmp_path) -> None:
    trainer = trainers.start("core", tmp_path / "there", server.uri, model=tmp_path.name, pace=0.001)
    wait_for(lambda: trainer.reached(moment), f"training reaches {moment}")
    let_pass(random.Random(moment).uniform(0.1, 0.6))
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
