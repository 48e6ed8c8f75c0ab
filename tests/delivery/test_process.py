"""The delivery process under real faults: kills, no server, a cold store, orphans, dead trainers."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from processes import delivery_processes, free_port, own_artifacts, run_script, script, wait_for
from servers import start_server, stop_server
from tracking_callbacks import Delivery, MLflowTracker, Recording

TRAIN = """
    import sys, time
    from tracking_callbacks import Delivery, MLflowTracker
    tracker = MLflowTracker()
    with tracker.start_run("trained") as run:
        run.log_params({"lr": 1})
        for step in range(500):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        {then}
"""


def train(then: str = "pass") -> str:
    return TRAIN.replace("{then}", then)


def local_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}", f"sqlite:///{folder / 'mlflow.db'}")


def only_run(client: MlflowClient):
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run


def check_exact(client: MlflowClient, run, points: int = 500) -> None:
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(points)]
    assert run.data.params == {"lr": "1"}


def test_a_script_on_the_cold_default_store_leaves_a_complete_run(tmp_path) -> None:
    done = run_script(train(), cwd=tmp_path)
    client = local_client(tmp_path)
    run = only_run(client)

    assert done.returncode == 0, done.stderr
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith(f"{tmp_path}/mlruns/")
    check_exact(client, run)
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process exits when its work is done")
    left = {path.name for path in (tmp_path / ".tracking_callbacks").iterdir()}
    assert left <= {".gitignore", ".lock", "delivered", "delivery.log"}
    assert {path.name for path in tmp_path.iterdir()} == {
        ".tracking_callbacks",
        "mlflow.db",
        "mlruns",
        "pyproject.toml",
    }


@pytest.mark.parametrize(
    ("then", "code", "status", "last_line"),
    [
        ("raise RuntimeError('diverged')", 1, "FAILED", "RuntimeError: diverged"),
        ("sys.exit(3)", 3, "KILLED", "SystemExit: 3"),
        ("import os; os._exit(4)", 4, "KILLED", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "KILLED", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, "KILLED", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2, "KILLED", "KeyboardInterrupt"),
    ],
)
def test_the_status_is_correct_however_the_trainer_ends(
    server, client, tmp_path, then, code, status, last_line
) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    done = run_script(train(then), cwd=tmp_path, env=env)

    def ended():
        experiment = client.get_experiment_by_name(tmp_path.name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return [run for run in runs if run.info.status != "RUNNING"]

    (run,) = wait_for(ended, "the run has ended in the store")
    assert done.returncode == code
    assert run.info.status == status
    assert run.data.tags.get("tracking_callbacks.error") == last_line
    assert ("Traceback" in done.stderr) == (code in (1, -2))
    check_exact(client, run)


def test_an_exception_outside_a_with_block_fails_the_run_and_records_the_traceback(server, client, tmp_path) -> None:
    code = """
        from tracking_callbacks import Delivery, MLflowTracker
        run = MLflowTracker().start_run()
        run.log_metrics({"loss": 1.0})
        raise RuntimeError("outside")
    """
    run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name})

    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert run.info.status == "FAILED"
    assert own_artifacts(client, run.info.run_id) == ["error.txt"]


def test_an_unreachable_server_delays_nothing_and_gets_everything_later(tmp_path) -> None:
    port = free_port()
    code = train().replace("MLflowTracker()", "MLflowTracker(delivery=Delivery(flush_timeout=1))")
    env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_EXPERIMENT_NAME": "late"}
    done = run_script(code, cwd=tmp_path, env=env, timeout=30)

    assert done.returncode == 0, done.stderr
    assert "not delivered after 1 s" in done.stderr
    assert delivery_processes(tmp_path), "delivery goes on without the trainer"
    server = start_server(tmp_path, port)
    try:
        client = MlflowClient(server.uri)
        wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes", seconds=90)
        (run,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
        assert run.info.status == "FINISHED"
        assert run.info.end_time - run.info.start_time < 20_000
        check_exact(client, run)
    finally:
        stop_server(server)


def test_the_next_run_delivers_what_a_dead_machine_left(server, client, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    offline = train("import os; os._exit(0)").replace(
        "MLflowTracker()", "MLflowTracker(delivery=Delivery(offline=True))"
    )
    run_script(offline, cwd=tmp_path, env=env)
    assert not delivery_processes(tmp_path)
    run_script(train(), cwd=tmp_path, env=env)
    wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes")

    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    for run in runs:
        check_exact(client, run)


def test_delivery_outlives_sigterm_and_a_shadowing_mlflow(server, client, tmp_path) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('a file of the user that happens to have this name')")
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    with script(train("print('ready', flush=True); sys.stdin.readline()"), cwd=tmp_path, env=env) as trainer:
        assert trainer.stdout.readline() == "ready\n"
        (process,) = wait_for(lambda: delivery_processes(tmp_path), "delivery runs")
        wait_for(lambda: "SIGTERM" in ignored_signals(process), "delivery sets up its signals")
        process.terminate()
        trainer.communicate("\n", timeout=60)

        assert trainer.returncode == 0
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert run.info.status == "FINISHED"
    check_exact(client, run)


def ignored_signals(process: psutil.Process) -> set[str]:
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    return {name.name for name in signal.Signals if mask >> (name - 1) & 1}


def test_a_forked_child_writes_nothing_and_delivers_nothing(server, client, tmp_path) -> None:
    fork = """import os
        child = os.fork()
        if child == 0:
            run.log_metrics({"loss": -1.0}, step=-1)
            run.end("FAILED")
            sys.exit(0)
        os.waitpid(child, 0)"""
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    done = run_script(train(fork), cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stderr
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert run.info.status == "FINISHED"
    check_exact(client, run)


def test_a_file_store_works_although_mlflow_refuses_it(tmp_path, monkeypatch) -> None:
    done = run_script(train(), cwd=tmp_path, env={"MLFLOW_TRACKING_URI": "file:./mlruns"})
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((tmp_path / "mlruns").as_uri())

    assert done.returncode == 0, done.stderr
    check_exact(client, only_run(client))


def test_credentials_in_the_uri_are_written_nowhere(server, tmp_path) -> None:
    uri = server.uri.replace("http://", "http://someone:s3cret-w0rd@")
    done = run_script(train("print(tracker, run, run.url)"), cwd=tmp_path, env={"MLFLOW_TRACKING_URI": uri})
    wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes")

    assert done.returncode == 0, done.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"s3cret" not in written
    assert "s3cret" not in done.stdout + done.stderr
    assert "***@127.0.0.1" in done.stdout


def test_a_run_id_that_the_store_does_not_know_is_named_and_the_exit_does_not_wait_for_it(server, tmp_path) -> None:
    code = f"""
        from tracking_callbacks import MLflowTracker
        with MLflowTracker().start_run(run_id="{"0" * 32}") as run:
            run.log_metrics({{"loss": 1.0}})
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": server.uri})

    assert f"the store has no run '{'0' * 32}', which run_id or MLFLOW_RUN_ID names" in done.stderr
    assert "not delivered after" in done.stderr
    assert "after 60 s" not in done.stderr
    assert done.stderr.count("delivering for at most 60 s") <= 1


def test_the_training_process_never_imports_mlflow_to_log(server, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    done = run_script(train("print(sorted(m for m in sys.modules if m == 'mlflow'))"), cwd=tmp_path, env=env)

    assert done.stdout == "[]\n"


def test_a_run_started_right_before_its_trainer_dies_is_found(server, client, tmp_path) -> None:
    code = """
        import os, signal, time
        from tracking_callbacks import Delivery, MLflowTracker
        from tracking_callbacks._writing.launch import launcher_for
        tracker = MLflowTracker()
        tracker.settings.journal_root.mkdir()
        launcher_for(tracker.settings, tracker.settings.journal_root).ensure_running()
        time.sleep({seconds})  # the delivery process has looked for runs, and has found none
        tracker.start_run().log_metrics({{"loss": 1.0}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    for number, seconds in enumerate((0.9, 1.1, 1.3)):  # it looks twice a second
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "pyproject.toml").touch()
        run_script(code.format(seconds=seconds), cwd=tmp_path / str(number), env=env)
    wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes", 60)

    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3


@pytest.mark.usefixtures("children_without_coverage")
def test_delivery_to_a_server_stays_small_whatever_it_delivers(server, client, mlmodel, tmp_path) -> None:
    """Pictures, a model, system metrics and a large file: 40 MB is the bar, and an import of MLflow takes 180."""
    (tmp_path / "large.bin").write_bytes(os.urandom(50_000_000))
    run = MLflowTracker(
        server.uri, "small", record=Recording(system_metrics=True), delivery=Delivery(journal_root=tmp_path / "journal")
    ).start_run()
    for step in range(2000):
        run.log_metrics({"train/loss": 1 / (step + 1), "eval/accuracy": step / 2000}, step=step)
    run.draw("learning_curves")
    run.log_artifact(tmp_path / "large.bin")
    run.log_model(mlmodel, registered_model_name=f"small-{tmp_path.name}")
    (delivery,) = wait_for(lambda: delivery_processes(tmp_path), "delivery starts")
    wait_for(lambda: any("system/cpu" in name for name in client.get_run(run.run_id).data.metrics), "a sample arrives")
    sizes = [0]

    def delivered() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(delivery.memory_info().rss)
        return run.report().complete

    run.end()
    wait_for(delivered, "the run is delivered", seconds=120)

    assert max(sizes) < 40e6
    names = [found.path for found in client.list_artifacts(run.run_id)]
    assert "large.bin" in names
    assert [found.path for found in client.list_artifacts(run.run_id, "figures")] == ["figures/learning_curves.png"]
