"""``tracking-callbacks status`` and ``sync``: what they show, what they deliver, their exit codes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from faults.proxy import Fault, running_proxy
from processes import free_port, own_artifacts, run_script, script, stop_delivery, wait_for
from tracking_callbacks._journal import pending
from tracking_callbacks._journal.layout import JournalRoot, RunState

OFFLINE = """
    import sys
    from tracking_callbacks import Delivery, MLflowTracker
    with MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(offline=True)).start_run("night run") as run:
        for step in range(100):
            run.log_metrics({{"loss": float(step)}}, step=step)
        run.log_text("hello", "hello.txt")
        {then}
"""


def command(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env=os.environ | (env or {}),
    )  # fmt: skip


def test_offline_runs_are_shown_and_synced(server, client, tmp_path) -> None:
    trained = run_script(OFFLINE.format(uri=server.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
    root = tmp_path / ".tracking_callbacks"
    assert f"logged offline is in {root}; 'tracking-callbacks sync {root}' delivers it" in trained.stderr
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


NOTEBOOK = """
    import sys
    from tracking_callbacks import Delivery, MLflowTracker
    tracker = MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(offline={offline}, flush_timeout=0.1))
    ended, open_ = tracker.start_run("ended"), tracker.start_run("open")
    for run in (ended, open_):
        run.log_metrics({{"loss": 1.0}}, step=1)
        run.log_text("hello", "hello.txt")
    ended.end()
    print(tracker.settings.journal_root, flush=True)
    for line in iter(sys.stdin.readline, "end\\n"):
        open_.log_metrics({{"loss": float(line)}}, step=2)
        print("logged", flush=True)
"""


ELSEWHERE = """
from tracking_callbacks._journal import owner
owner._boot_id = lambda: "another machine"  # which shares the journal root with this one
"""


@pytest.mark.parametrize("machine", ["", ELSEWHERE], ids=["here", "elsewhere"])
def test_sync_delivers_offline_runs_although_their_owner_lives(server, client, tmp_path, machine: str) -> None:
    code = machine + textwrap.dedent(NOTEBOOK).format(uri=server.uri, experiment=tmp_path.name, offline=True)
    with script(code, cwd=tmp_path) as notebook:
        notebook.stdout.readline()
        before = command("status", cwd=tmp_path)
        synced = command("sync", cwd=tmp_path)
        between = command("status", cwd=tmp_path)
        notebook.stdin.write("2.0\n")
        notebook.stdin.flush()
        notebook.stdout.readline()
        later = command("status", cwd=tmp_path)
        again = command("sync", cwd=tmp_path)
        notebook.stdin.write("end\n")
        notebook.stdin.flush()
        notebook.wait(60)
        last = command("sync", cwd=tmp_path)

    assert (before.returncode, synced.returncode, between.returncode) == (1, 0, 0), synced.stderr
    assert synced.stdout == "Everything is delivered so far; 1 run is still open.\n"
    assert synced.stdout in between.stdout
    assert (later.returncode, again.returncode, last.stdout) == (1, 0, "Everything is delivered.\n")
    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {"ended": "FINISHED", "open": "KILLED"}
    for run in runs:
        assert own_artifacts(client, run.info.run_id) == ["hello.txt"]
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [point.value for point in points] == ([1.0] if run.info.run_name == "ended" else [1.0, 2.0])


def test_what_a_living_delivery_process_delivers_is_left_to_it_and_said(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.fault(Fault("hang"))
        code = NOTEBOOK.format(uri=proxy.uri, experiment=tmp_path.name, offline=False)
        with script(code, cwd=tmp_path) as notebook:
            notebook.stdout.readline()
            wait_for(lambda: proxy.struck["hang"], "the notebook's delivery process is at work")
            synced = command("sync", cwd=tmp_path)
            shown = command("status", cwd=tmp_path)

            said = "2 runs are being delivered by their own process\n"
            assert (synced.returncode, synced.stdout) == (1, said)
            assert shown.returncode == 1
            assert said in shown.stdout
            proxy.fault()
            wait_for(lambda: command("status", cwd=tmp_path).returncode == 0, "delivered by the notebook's process", 90)


def test_sync_delivers_for_a_living_trainer_whose_delivery_process_died(server, client, tmp_path) -> None:
    code = NOTEBOOK.format(uri=server.uri, experiment=tmp_path.name, offline=False)
    with script(code, cwd=tmp_path) as notebook:
        notebook.stdout.readline()
        stop_delivery(tmp_path)
        synced = command("sync", cwd=tmp_path)

        assert (synced.returncode, synced.stdout.split(";")[0].split(".")[0]) == (0, "Everything is delivered so far")
    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert {run.info.run_name for run in runs} == {"ended", "open"}


def test_a_delivery_process_takes_back_what_a_sync_could_not_deliver(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.refuse()
        left_behind = OFFLINE.replace("offline=True", "flush_timeout=0.1")
        run_script(left_behind.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        wait_for(lambda: "connection refused" in command("status", cwd=tmp_path).stdout, "delivery fails")
        synced = command("sync", "--stall-timeout", "3", cwd=tmp_path)
        log = (tmp_path / ".tracking_callbacks" / "delivery.log").read_text()
        wait_for(lambda: "under way" in command("status", cwd=tmp_path).stdout, "the first process takes the run back")
        proxy.accept()
        wait_for(lambda: command("status", cwd=tmp_path).returncode == 0, "the first process delivers", 60)

    assert synced.returncode == 1
    assert "left to a sync" in log
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 100


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


def test_sync_with_the_right_password_takes_over_from_a_process_with_a_wrong_one(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.passes = {basic("right")}
        code = NOTEBOOK.format(uri=proxy.uri, experiment=tmp_path.name, offline=False)
        user = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_URI": proxy.uri}
        with script(code, cwd=tmp_path, env=user | {"MLFLOW_TRACKING_PASSWORD": "wrong"}) as notebook:
            notebook.stdout.readline()
            wait_for(lambda: "credentials" in command("status", cwd=tmp_path).stdout, "the wrong password is refused")
            synced = command("sync", cwd=tmp_path, env=user | {"MLFLOW_TRACKING_PASSWORD": "right"})

    assert (synced.returncode, synced.stdout) == (0, "Everything is delivered so far; 1 run is still open.\n")
    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert {run.info.run_name for run in runs} == {"ended", "open"}


@pytest.mark.parametrize("named", [False, True])
def test_credentials_go_only_to_a_host_that_the_user_names(server, tmp_path, named) -> None:
    with running_proxy(server.uri) as proxy:
        run_script(OFFLINE.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        secrets = {"MLFLOW_TRACKING_TOKEN": "secret", "MLFLOW_TRACKING_URI": proxy.uri if named else "http://team:5000"}
        synced = command("sync", cwd=tmp_path, env=secrets)

    assert synced.returncode == 0
    assert proxy.shown == ({"Bearer secret"} if named else set())
    assert (f"MLFLOW_TRACKING_TOKEN: not sent to {proxy.uri}" in synced.stderr) is not named


def test_sync_goes_on_while_a_large_file_is_on_its_way(server, client, tmp_path) -> None:
    code = OFFLINE.replace('"hello", "hello.txt"', '"x" * 24_000_000, "large.txt"')
    with running_proxy(server.uri) as proxy:
        run_script(code.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        proxy.bytes_per_second = 2_000_000
        synced = command("sync", "--stall-timeout", "5", cwd=tmp_path)

    assert (synced.returncode, synced.stdout) == (0, "Everything is delivered.\n"), synced.stderr


def test_sync_gives_up_on_a_store_that_takes_the_first_bytes_again_and_again(server, tmp_path) -> None:
    code = OFFLINE.replace('"hello", "hello.txt"', '"x" * 8_000_000, "large.txt"')
    with running_proxy(server.uri) as proxy:
        run_script(code.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        proxy.fault(Fault("cut", paths=("large.txt",)))
        synced = command("sync", "--stall-timeout", "5", cwd=tmp_path)

    assert synced.returncode == 1
    assert "night run: 1 left; " in synced.stderr


def test_sync_delivers_many_runs_in_one_call_however_long_it_takes(server, client, tmp_path) -> None:
    code = """
        from tracking_callbacks import Delivery, MLflowTracker
        for number in range(12):
            tracker = MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(offline=True))
            with tracker.start_run(f"run {{number}}") as run:
                run.log_metrics({{"loss": 1.0}}, step=1)
                run.log_text("hello", "hello.txt")
    """
    with running_proxy(server.uri) as proxy:
        run_script(code.format(uri=proxy.uri, experiment=tmp_path.name), cwd=tmp_path)
        proxy.fault(Fault("slow", seconds=0.2))
        synced = command("sync", "--stall-timeout", "4", cwd=tmp_path)

    assert (synced.returncode, synced.stdout) == (0, "Everything is delivered.\n"), synced.stderr
    assert len(client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])) == 12


def test_a_folder_whose_journal_cannot_be_read_is_kept_and_said(tmp_path) -> None:
    run_script(OFFLINE.format(uri="http://127.0.0.1:9", experiment="e", then="pass"), cwd=tmp_path)
    (folder,) = JournalRoot(tmp_path / ".tracking_callbacks").runs()
    (journal,) = folder.journals()
    journal.write_bytes(bytes(journal.stat().st_size))
    for arguments in (["status"], ["sync"]):
        done = command(*arguments, cwd=tmp_path)

        assert done.returncode == 1
        assert f"{folder.path}: no journal in it can be read; it is kept" in done.stderr
    assert journal.exists()


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
    assert (tmp_path / ".tracking_callbacks" / "delivery.log").read_text().count(" ended, status") == 1


def test_sync_says_what_stops_it_at_once_and_again_when_that_changes(server, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        run_script(OFFLINE.format(uri=proxy.uri, experiment=tmp_path.name, then="pass"), cwd=tmp_path)
        proxy.refuse()
        assert command("sync", "--stall-timeout", "1", cwd=tmp_path).returncode == 1
        sync = subprocess.Popen(
            [sys.executable, "-m", "tracking_callbacks.cli", "sync"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            first = [sync.stderr.readline() for _ in range(2)]
            proxy.fault(Fault("answer", statuses=(503,)))
            proxy.accept()
            second = sync.stderr.readline()
            proxy.fault()
            rest, errors = sync.communicate(timeout=60)
        finally:
            sync.kill()

    assert first[0].startswith("Delivering 1 run")
    assert first[1].startswith(f"not delivered yet: cannot reach {proxy.uri}")
    assert second.startswith("not delivered yet: ")
    assert "503" in second
    assert (sync.returncode, rest, errors) == (0, "Everything is delivered.\n", "")


def test_status_watch_prints_each_change_where_the_output_is_no_terminal(server, tmp_path) -> None:
    code = textwrap.dedent(NOTEBOOK).format(uri=server.uri, experiment=tmp_path.name, offline=True)
    with script(code, cwd=tmp_path) as notebook:
        notebook.stdout.readline()
        watch = subprocess.Popen(
            [sys.executable, "-m", "tracking_callbacks.cli", "status", "--watch"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            first = [watch.stdout.readline() for _ in range(3)]
            notebook.stdin.write("2.0\n")
            notebook.stdin.flush()
            second = [watch.stdout.readline() for _ in range(3)]
            notebook.stdin.write("end\n")
            notebook.stdin.flush()
            notebook.wait(60)
            assert command("sync", cwd=tmp_path).returncode == 0
            rest, _ = watch.communicate(timeout=60)
        finally:
            watch.kill()

    assert first[0].split() == second[0].split()
    assert [line.split()[:1] for line in first] == [["RUN"], ["ended"], ["open"]]
    assert (first[2].split()[2], second[2].split()[2]) == ("2", "3")
    assert (watch.returncode, rest.splitlines()[-1]) == (0, "Everything is delivered.")


def test_a_run_without_a_name_is_shown_by_the_beginning_of_its_id(tmp_path) -> None:
    code = OFFLINE.format(uri="http://127.0.0.1:9", experiment="e", then="pass").replace('"night run"', "")
    run_script(code, cwd=tmp_path)
    (folder,) = JournalRoot(tmp_path / ".tracking_callbacks").runs()
    folder.write_state(RunState(run_id=""))  # as of the calls of a program, which belong to no run
    shown = command("status", cwd=tmp_path)
    (row,) = json.loads(command("status", "--json", cwd=tmp_path).stdout)
    details = command("show", folder.run_key[:8], cwd=tmp_path)

    assert shown.stdout.splitlines()[1].split()[0] == folder.run_key[:8]
    assert (row["name"], row["run_id"]) == (folder.run_key, None)
    assert details.stdout.startswith(f"{folder.run_key[:8]}: FINISHED\n")


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
