"""``tracking-callbacks status`` and ``sync``: what they show, what they deliver, their exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faults.proxy import Fault, running_proxy
from processes import free_port, own_artifacts, run_script, script, wait_for
from tracking_callbacks._journal import pending
from tracking_callbacks._journal.layout import JournalRoot

OFFLINE = """
    import sys
    from tracking_callbacks import Delivery, MLflowTracker
    with MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(offline=True)).start_run("night run") as run:
        for step in range(100):
            run.log_metrics({{"loss": float(step)}}, step=step)
        run.log_text("hello", "hello.txt")
        {then}
"""


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ),
    )  # fmt: skip


def test_offline_runs_are_shown_and_synced(server, client, tmp_path) -> None:
    run_script(OFFLINE.format(uri=server.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
    before = command("status", cwd=tmp_path)
    synced = command("sync", cwd=tmp_path)
    after = command("status", str(tmp_path), cwd=tmp_path.parent)

    assert before.returncode == 1
    assert all(word in before.stdout for word in ("night run", server.uri, "101", "gone"))
    assert (synced.returncode, synced.stdout.strip()) == (0, "Everything is delivered.")
    assert (after.returncode, after.stdout.strip()) == (0, "Everything is delivered.")
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "night run")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 100
    assert own_artifacts(client, run.info.run_id) == ["hello.txt"]


def test_sync_with_an_unreachable_store_keeps_everything_and_exits_with_1(tmp_path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    run_script(OFFLINE.format(uri=uri, experiment="e", then="pass"), cwd=tmp_path)
    synced = command("sync", "--stall-timeout", "2", cwd=tmp_path)

    assert synced.returncode == 1
    assert "night run: 101 left" in synced.stderr
    assert "refused" in synced.stderr
    assert command("status", cwd=tmp_path).returncode == 1


def test_a_run_can_be_delivered_to_another_store(server, client, tmp_path) -> None:
    run_script(OFFLINE.format(uri="http://127.0.0.1:9", experiment=tmp_path.name, then="pass"), cwd=tmp_path)
    synced = command("sync", "--tracking-uri", server.uri, cwd=tmp_path)

    assert synced.returncode == 0, synced.stderr
    assert client.get_experiment_by_name(tmp_path.name) is not None


def test_a_running_run_is_shown_and_left_to_its_own_delivery(tmp_path) -> None:
    code = OFFLINE.format(
        uri="http://127.0.0.1:9", experiment="e", then="print('up', flush=True); sys.stdin.readline()"
    )
    with script(code, cwd=tmp_path) as trainer:
        assert trainer.stdout.readline() == "up\n"
        shown = command("status", cwd=tmp_path)
        synced = command("sync", "--stall-timeout", "1", cwd=tmp_path)

    assert "running" in shown.stdout
    assert synced.returncode == 0


def test_sync_waits_for_what_another_process_delivers(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.fault(Fault("hang"))
        left_behind = OFFLINE.replace("offline=True", "flush_timeout=0.1")
        run_script(left_behind.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        wait_for(lambda: proxy.struck["hang"], "the trainer's delivery process is at work")
        proxy.fault(Fault("slow", paths=("/runs/create", "/runs/log-batch"), seconds=2))
        synced = command("sync", cwd=tmp_path)

    assert (synced.returncode, synced.stdout.strip()) == (0, "Everything is delivered."), synced.stderr
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 100
    assert (tmp_path / ".tracking_callbacks" / "delivery.log").read_text().count(" closed, status") == 1


def test_wrong_use_exits_with_2(tmp_path) -> None:
    for arguments in (["sync", "absent"], ["sync", "--stall-timeout", "x"], ["frobnicate"]):
        assert command(*arguments, cwd=tmp_path).returncode == 2
    help_text = command("--help", cwd=tmp_path).stdout
    assert all(word in help_text for word in ("status", "sync", "ui"))


def test_a_run_that_is_delivered_while_status_reads_it_is_no_longer_pending(tmp_path, monkeypatch) -> None:
    run_script(OFFLINE.format(uri="http://127.0.0.1:9", experiment="e", then="pass"), cwd=tmp_path)
    (folder,) = JournalRoot(tmp_path / ".tracking_callbacks").runs()
    read_opened = pending.read_opened

    def read_and_lose(journal: Path) -> object:
        opened = read_opened(journal)
        journal.unlink()
        return opened

    assert pending.pending_run(folder) is not None
    monkeypatch.setattr(pending, "read_opened", read_and_lose)
    assert pending.pending_run(folder) is None
