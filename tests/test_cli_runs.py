"""``tracking-callbacks show``, ``tail``, ``status --json``, ``doctor`` and ``ui``, also while the store is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from processes import free_port, run_script, script, wait_for
from test_cli import command

RUN = """
    import logging, math, sys, time
    from tracking_callbacks import Delivery, MLflowTracker
    logging.getLogger().setLevel(logging.INFO)
    tracker = MLflowTracker("http://127.0.0.1:9", "night", delivery=Delivery(flush_timeout=0.1, grace=0))
    run = tracker.start_run("night run")
    run.log_params({"learning_rate": 0.1, "batch_size": 8})
    for step in range(5):
        run.log_metrics({"train/loss": 1 / (step + 1), "train/grad_norm": math.nan}, step)
        logging.info("epoch %d is over", step)
    print("logged", flush=True)
    for line in sys.stdin:
        if line.startswith("fail"):
            run.fail(ArithmeticError("diverged"))
            break
        run.log_metrics({"train/loss": float(line)}, 9)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder."""
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_show_and_status_tell_of_a_run_whose_store_is_away(folder: Path) -> None:
    with script(RUN, cwd=folder) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdin is not None
        assert trainer.stdout.readline() == "logged\n"
        shown = command("show", cwd=folder)
        details = json.loads(command("show", "night run", "--json", cwd=folder).stdout)
        (row,) = json.loads(command("status", "--json", cwd=folder).stdout)
        trainer.stdin.write("fail\n")
        trainer.stdin.flush()
        trainer.wait(60)
    failed = json.loads(command("show", row["run_key"][:6], "--json", cwd=folder).stdout)

    assert shown.returncode == 0
    assert "night run: RUNNING\n" in shown.stdout
    assert "2 params, 10 points of 2 metrics" in shown.stdout
    assert "train/loss                0.2  at step 4" in shown.stdout
    assert (row["name"], row["trainer"], row["experiment"]) == ("night run", "running", "night")
    assert row["pending"] >= 12
    assert details["metrics"] == {"train/loss": [4, 0.2], "train/grad_norm": [4, "nan"]}
    assert details["run"]["run_key"] == row["run_key"]
    assert (failed["status"], failed["run"]["trainer"]) == ("FAILED", "gone")
    assert failed["error"] == "ArithmeticError: diverged"


def test_tail_follows_the_log_and_the_points_until_the_run_ends(folder: Path) -> None:
    with script(RUN, cwd=folder) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdin is not None
        assert trainer.stdout.readline() == "logged\n"
        last = command("tail", "-n", "3", "--no-follow", cwd=folder)
        following = subprocess.Popen(
            [sys.executable, "-u", "-m", "tracking_callbacks.cli", "tail"], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert following.stdout is not None
        first = following.stdout.readline()
        trainer.stdin.write("0.125\nfail\n")
        trainer.stdin.flush()
        rest, end = following.communicate(timeout=60)

    assert last.stdout.splitlines()[-1].startswith("step 4  train/loss 0.2")
    assert len(last.stdout.splitlines()) == 3
    assert "epoch" in first + rest
    assert "step 9  train/loss 0.125" in rest
    assert following.returncode == 0
    assert end == "night run: FAILED\n"


def test_a_run_that_is_not_there_or_not_the_only_one_is_named(folder: Path) -> None:
    none = command("show", cwd=folder)
    offline = RUN.replace("delivery=Delivery(", "delivery=Delivery(offline=True, ").replace(
        "for line in sys.stdin", "for line in ()"
    )
    for _ in range(2):
        run_script(offline, cwd=folder)
    several = command("show", "night run", cwd=folder)
    unknown = command("tail", "day run", cwd=folder)

    assert (none.returncode, several.returncode, unknown.returncode) == (1, 1, 1)
    assert "no run waits for delivery in" in none.stderr
    assert "'night run' names 2 runs" in several.stderr
    assert "no run that waits for delivery is called 'day run'" in unknown.stderr


def test_a_delivered_run_is_named_with_the_way_to_it(server, client, folder: Path) -> None:
    one_run = """
        from tracking_callbacks import MLflowTracker
        MLflowTracker(experiment_name="delivered").start_run().end()
    """
    run_script(one_run, cwd=folder)
    local = command("show", cwd=folder)
    run_script(one_run, cwd=folder, env={"MLFLOW_TRACKING_URI": server.uri})
    remote = command("tail", cwd=folder)
    (run,) = client.search_runs([client.get_experiment_by_name("delivered").experiment_id])
    by_name = command("show", run.info.run_name, cwd=folder)
    unknown = command("show", "day run", cwd=folder)

    page = f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert {one.returncode for one in (local, remote, by_name, unknown)} == {1}
    assert "tracking-callbacks ui" in local.stderr
    assert f"{run.info.run_name} is the last that was delivered: {page}" in remote.stderr
    assert f"{run.info.run_name} is delivered: {page}" in by_name.stderr
    assert "is delivered:" not in unknown.stderr


def test_the_doctor_finds_a_healthy_store_and_says_its_version(server, folder: Path) -> None:
    found = command("doctor", "--json", cwd=folder, env={"MLFLOW_TRACKING_URI": server.uri})
    by_subject = {one["subject"]: one for one in json.loads(found.stdout)}

    assert found.returncode == 0, found.stdout
    assert by_subject["store"]["what"].startswith("answers (MLflow ")
    assert by_subject["tracking URI"]["what"].startswith(server.uri)
    assert "free" in by_subject["journal root"]["what"]


@pytest.mark.parametrize("fault", ["away", "switched off", "left", "root"])
def test_the_doctor_finds_what_is_wrong_and_advises(fault: str, folder: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    if fault == "away":
        env = {"MLFLOW_TRACKING_URI": f"http://user:s3cret@127.0.0.1:{free_port()}"}
    if fault == "switched off":
        env |= {"TRACKING_CALLBACKS_DISABLED": "true"}
    if fault == "left":
        run_script(RUN.replace("for line in sys.stdin", "for line in ()"), cwd=folder)
    if fault == "root":
        (folder / ".tracking_callbacks").mkdir(mode=0o777)
        (folder / ".tracking_callbacks").chmod(0o777)
    found = command("doctor", cwd=folder, env=env)
    wrong = [line for line in found.stdout.splitlines() if line.startswith("✗")]

    assert found.returncode == 1, found.stdout
    assert len(wrong) == 1, found.stdout
    assert {"away": "refused", "switched off": "TRACKING_CALLBACKS_DISABLED", "left": "1 run wait", "root": "cannot"}[
        fault
    ] in wrong[0]
    assert "s3cret" not in found.stdout
    assert not (folder / "mlflow.db").exists()


def test_the_doctor_names_the_variables_that_alerts_lack(folder: Path) -> None:
    (folder / "tracking.yaml").write_text("alerts: [{when: fails, notify: [$NOT_SET_HERE, 'mailto:a@b']}]")
    found = command("doctor", "--config", "tracking.yaml", cwd=folder)
    healthy = command(
        "doctor", "--config", "tracking.yaml", cwd=folder, env={"NOT_SET_HERE": "http://x", "SMTP_HOST": "x"}
    )

    assert (found.returncode, healthy.returncode) == (1, 0)
    assert "✗ alerts: NOT_SET_HERE and SMTP_HOST not set in the environment" in found.stdout
    assert "alerts" not in healthy.stdout


@pytest.mark.parametrize("runs", [0, 1, 2])
def test_the_doctor_calls_runs_that_wait_offline_nothing_wrong(folder: Path, runs: int) -> None:
    (folder / "tracking.yaml").write_text("delivery: {offline: true}")
    offline = f"""
        from tracking_callbacks import MLflowTracker
        for _ in range({runs}):
            MLflowTracker(config="tracking.yaml").start_run().end()
    """
    run_script(offline, cwd=folder)
    found = command("doctor", cwd=folder, env={"TRACKING_CALLBACKS_CONFIG": "tracking.yaml"})
    by_argument = command("doctor", cwd=folder)  # the file is not named, and the runs say that they are offline

    waits = {0: "no run waits", 1: "1 run waits", 2: "2 runs wait"}[runs]
    assert found.returncode == 0, found.stdout
    assert f"· journal root: delivery.offline is on; {waits} for tracking-callbacks sync\n" in found.stdout
    assert by_argument.returncode == (1 if runs else 0)


@pytest.mark.parametrize("how_named", ["option", "variable", "wrong key"])
def test_a_config_file_that_cannot_be_used_is_named_and_the_rest_is_looked_at(folder: Path, how_named: str) -> None:
    (folder / "wrong.yaml").write_text("delivery: {graze: 5}")
    name = "wrong.yaml" if how_named == "wrong key" else "absent.yaml"
    option = ["--config", name] if how_named == "option" else []
    env = {} if how_named == "option" else {"TRACKING_CALLBACKS_CONFIG": name}
    found = command("doctor", *option, cwd=folder, env=env)
    shown = [command(*words, cwd=folder, env=env) for words in (["status"], ["show"], ["sync"], ["tail"])]
    registry = command("models", *option, cwd=folder, env=env)

    what = "unknown key 'delivery.graze'" if how_named == "wrong key" else "No such file or directory"
    assert found.returncode == 1
    assert f"✗ config file: {name}: {what}" in found.stdout
    assert all(f"✓ {subject}" in found.stdout for subject in ("store", "versions", "journal root"))
    assert "Usage" not in "".join(one.stderr for one in (found, registry, *shown))
    assert f"Error: config file {name}: {what}" in registry.stderr
    assert (registry.returncode, registry.stdout) == (2, "")
    if how_named != "option":
        assert [one.returncode for one in shown] == [2] * 4
        assert all(f"Error: config file {name}: {what}" in one.stderr for one in shown)


def test_the_doctor_goes_on_after_a_malformed_uri(folder: Path) -> None:
    found = command("doctor", cwd=folder, env={"MLFLOW_TRACKING_URI": "htp://x"})

    assert found.returncode == 1
    assert "✗ settings: MLFLOW_TRACKING_URI: tracking_uri: expected a scheme" in found.stdout
    assert "✓ versions" in found.stdout


def test_models_makes_no_store(folder: Path) -> None:
    here = command("models", cwd=folder)
    as_json = command("models", "--json", "--tracking-uri", "mlruns", cwd=folder)
    registry = command("models", cwd=folder, env={"MLFLOW_REGISTRY_URI": "sqlite:///registry.db?timeout=5"})

    assert (here.returncode, as_json.returncode, registry.returncode) == (0, 0, 0)
    assert here.stdout == f"{folder}/mlflow.db does not exist yet; the first run creates it\n"
    assert registry.stdout.startswith(f"{folder}/registry.db does not exist yet")
    assert as_json.stdout == "[]\n"
    assert sorted(path.name for path in folder.iterdir()) == ["pyproject.toml"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_ui_leaves_no_process_when_it_is_ended(how: signal.Signals, folder: Path) -> None:
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "-m", "tracking_callbacks.cli", "ui", "--port", str(port)], cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}, start_new_session=True,
    )  # fmt: skip
    try:
        assert ui.stdout is not None
        assert ui.stdout.readline() == f"MLflow UI of sqlite:///{folder}/mlflow.db: http://127.0.0.1:{port}\n"
        process = psutil.Process(ui.pid)
        wait_for(lambda: answers(port), "the UI answers", seconds=90)
        started = process.children(recursive=True)
        ui.send_signal(how)
        ui.wait(30)
        wait_for(lambda: not any(child.is_running() for child in started), "its processes are gone", seconds=30)
    finally:
        for child in psutil.process_iter(["cmdline"]):
            if str(port) in " ".join(child.info["cmdline"] or []):
                child.kill()
        if ui.poll() is None:
            ui.kill()
        ui.communicate()


def answers(port: int) -> bool:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
