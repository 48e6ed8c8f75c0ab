"""Provisional ids, in other processes and after restarts; and what is answered while the server is away."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_plugin.test_programs import sync
from processes import artifacts, free_port, run_script, stop_delivery, wait_for
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.provisional import Provisional, ProvisionalIds

pytestmark = pytest.mark.timeout(240)

FIRST = """
    import json, mlflow
    from mlflow.models import Model
    mlflow.set_experiment("ids")
    with mlflow.start_run(run_name="parent") as parent:
        mlflow.log_param("lr", 1)
        mlflow.log_metric("loss", 1.0, step=1)
        mlflow.log_text("first", "a.txt")
        model = mlflow.MlflowClient().create_logged_model(parent.info.experiment_id, "model", parent.info.run_id)
    print(json.dumps([parent.info.run_id, model.model_id, parent.info.experiment_id]))
"""
SECOND = """
    import os, mlflow
    c = mlflow.MlflowClient()
    parent, model = os.environ["IDS"].split()
    mlflow.set_experiment("ids")
    run = c.get_run(parent)
    assert run.info.run_name == "parent" and run.data.params == {"lr": "1"} and run.data.metrics == {"loss": 1.0}
    assert [one.path for one in c.list_artifacts(parent)] == ["a.txt"]
    assert mlflow.artifacts.load_text(f"runs:/{parent}/a.txt") == "first"
    assert c.get_logged_model(model).name == "model"
    with mlflow.start_run() as again:  # MLFLOW_RUN_ID
        assert again.info.run_id == parent, (again.info.run_id, parent)
        mlflow.log_metric("loss", 0.5, step=2)
        with mlflow.start_run(run_name="child", nested=True):
            mlflow.log_metric("x", 1)
    with mlflow.start_run(run_name="other child", parent_run_id=parent):
        pass
    c.set_logged_model_tags(model, {"seen": "yes"})
    c.log_metric(parent, "of model", 1.0, step=2, model_id=model)
    try:
        mlflow.log_param("x", 1)
    finally:
        mlflow.end_run()
    c.log_param(parent, "lr", 1)
    try:
        c.log_param(parent, "lr", 2)
    except mlflow.exceptions.MlflowException as error:
        print(error.error_code)
"""


def away() -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"journal+http://127.0.0.1:{free_port()}", "TRACKING_CALLBACKS_CONFIG": "c.yaml"}


def test_provisional_ids_hold_in_other_processes_and_after_the_delivery(server, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("delivery: {flush_timeout: 0}")
    environment = away()
    first = run_script(FIRST, cwd=tmp_path, env=environment)
    assert first.returncode == 0, first.stderr
    run_id, model_id, _ = json.loads(first.stdout.splitlines()[-1])
    ids = {"IDS": f"{run_id} {model_id}", "MLFLOW_RUN_ID": run_id}
    second = run_script(SECOND, cwd=tmp_path, env=environment | ids)
    assert second.returncode == 0, second.stderr
    assert "INVALID_PARAMETER_VALUE" in second.stdout
    stop_delivery(tmp_path)
    sync(tmp_path, server.uri)
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("ids")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["parent"]

    assert parent.data.tags["tracking_callbacks.run_key"] == run_id
    assert [point.value for point in client.get_metric_history(parent.info.run_id, "loss")] == [1.0, 0.5]
    for child in ("child", "other child"):
        assert runs[child].data.tags["mlflow.parentRunId"] == parent.info.run_id
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.tags["seen"] == "yes"
    assert [metric.key for metric in model.metrics] == ["of model"]

    third = """
        import os, mlflow
        c = mlflow.MlflowClient()
        run, model = os.environ["IDS"].split()
        assert c.get_run(run).data.metrics["loss"] == 0.5
        c.log_metric(run, "loss", 0.25, step=3)
        c.set_terminated(run)
        assert c.get_logged_model(model).tags["seen"] == "yes"
        assert len(c.search_runs([c.get_run(run).info.experiment_id])) == 4
    """
    done = run_script(third, cwd=tmp_path, env=ids | {"MLFLOW_TRACKING_URI": f"journal+{server.uri}"})
    assert done.returncode == 0, done.stderr
    assert [point.value for point in client.get_metric_history(parent.info.run_id, "loss")] == [1.0, 0.5, 0.25]

    elsewhere = """
        import os, mlflow
        c = mlflow.MlflowClient()
        run = os.environ["IDS"].split()[0]
        assert c.get_run(run).info.run_name == "parent"
        with mlflow.start_run(run_id=run):
            mlflow.log_metric("loss", 0.125, step=4)
    """
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "pyproject.toml").touch()
    done = run_script(elsewhere, cwd=other, env=ids | {"MLFLOW_TRACKING_URI": f"journal+{server.uri}"})
    assert done.returncode == 0, done.stderr
    assert [point.value for point in client.get_metric_history(parent.info.run_id, "loss")][-1] == 0.125


def test_a_server_that_is_away_stops_only_what_it_alone_knows_and_that_at_once(tmp_path: Path) -> None:
    code = """
        import time, mlflow
        from mlflow.exceptions import MlflowException
        c = mlflow.MlflowClient()
        mlflow.set_experiment("away")
        with mlflow.start_run() as run:
            mlflow.log_metric("a", 1)
        assert c.get_run(run.info.run_id).info.status == "FINISHED"
        c.create_registered_model("m")
        version = c.create_model_version("m", f"runs:/{run.info.run_id}/x", run.info.run_id)
        assert version.status == "PENDING_REGISTRATION", version
        c.set_registered_model_alias("m", "champion", version.version)
        assert c.get_model_version("m", version.version).status == "PENDING_REGISTRATION"
        for call in (
            lambda: c.search_runs(["0"]),
            lambda: c.search_experiments(),
            lambda: c.get_run("0" * 32),
            lambda: mlflow.pyfunc.load_model("models:/other@champion"),
            lambda: c.delete_run(run.info.run_id),
            lambda: c.search_registered_models(),
        ):
            began = time.monotonic()
            try:
                call()
            except MlflowException as error:
                assert "cannot be reached" in str(error) or "not on the server yet" in str(error), error
            else:
                raise AssertionError("no error")
            print(time.monotonic() - began)
    """
    (tmp_path / "c.yaml").write_text("delivery: {flush_timeout: 0}")
    began = time.monotonic()
    done = run_script(code, cwd=tmp_path, env=away())

    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 5
    assert time.monotonic() - began < 60
    assert os.listdir(tmp_path / ".tracking_callbacks" / ".ids")


def test_experiments_made_without_the_server_keep_their_location_and_tags(server, tmp_path: Path) -> None:
    code = """
        import mlflow
        from mlflow.exceptions import MlflowException
        placed = mlflow.create_experiment("placed", "mlflow-artifacts:/elsewhere", {"team": "a"})
        empty = mlflow.create_experiment("empty", tags={"team": "b"})
        assert mlflow.get_experiment(placed).tags == {"team": "a"}
        assert mlflow.get_experiment_by_name("placed").artifact_location == "mlflow-artifacts:/elsewhere"
        with mlflow.start_run(experiment_id=placed):
            mlflow.log_text("x", "x.txt")
        for again in (lambda: mlflow.create_experiment("placed"), lambda: mlflow.create_experiment("f", "/tmp/f")):
            try:
                again()
            except MlflowException as error:
                print(error)
    """
    (tmp_path / "c.yaml").write_text("delivery: {flush_timeout: 0}")
    done = run_script(code, cwd=tmp_path, env=away())
    assert done.returncode == 0, done.stderr
    stop_delivery(tmp_path)
    sync(tmp_path, server.uri)
    client = MlflowClient(server.uri, server.uri)
    placed, empty = (client.get_experiment_by_name(name) for name in ("placed", "empty"))
    (run,) = client.search_runs([placed.experiment_id])

    assert "already exists" in done.stdout
    assert "because its artifact location is a folder" in done.stdout
    assert placed.artifact_location == "mlflow-artifacts:/elsewhere"
    assert placed.tags["team"] == "a"
    assert empty.tags["team"] == "b"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/elsewhere")
    assert artifacts(client, run.info.run_id) == ["x.txt"]


def test_an_experiment_at_a_folder_waits_for_a_local_store_that_does_not_exist_yet(tmp_path: Path) -> None:
    code = """
        import mlflow
        with mlflow.start_run(experiment_id=mlflow.create_experiment("placed", "file:kept")) as run:
            mlflow.log_text("x", "x.txt")
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": "journal+sqlite:///m.db"})

    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "kept").glob("*/artifacts/*")] == ["x.txt"]


def test_old_provisional_ids_go_once_the_store_has_them(tmp_path: Path) -> None:
    ids = ProvisionalIds(JournalRoot(tmp_path))
    found = {"1" * 32: "real", "2" * 32: None, "3" * 32: "real"}
    for key, real in found.items():
        ids.promise(key, Provisional("run", key, real=real))
        os.utime(tmp_path / ".ids" / key, (0, 0) if key[0] != "3" else None)

    ids.prune(older_than=time.time() - 1000)

    assert sorted(os.listdir(tmp_path / ".ids")) == ["2" * 32, "3" * 32]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("raise ValueError('no')", "FAILED"),
        ("os.kill(os.getpid(), 9)", "KILLED"),
        ("pass", "FINISHED"),
        ("raise KeyboardInterrupt", "KILLED"),
    ],
)
def test_a_run_that_is_still_active_at_the_end_gets_its_true_status(end: str, status: str, server, tmp_path) -> None:
    name = f"status-{tmp_path.name}"
    code = f"import os, mlflow\nmlflow.set_experiment({name!r})\nmlflow.start_run()\nmlflow.log_metric('a', 1)\n{end}"
    run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"journal+{server.uri}"})
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name(name)

    def ended():
        (run,) = client.search_runs([experiment.experiment_id])
        return run if run.info.status != "RUNNING" else None

    run = wait_for(ended, "the run has ended")
    assert run.info.status == status
    if end.startswith("raise"):
        wait_for(lambda: artifacts(client, run.info.run_id) == ["error.txt"], "the traceback is there")
        assert run.data.tags["tracking_callbacks.error"]


def test_what_a_client_leaves_open_stays_running_and_a_forked_child_logs_to_it(server, tmp_path: Path) -> None:
    code = """
        import multiprocessing, mlflow
        c = mlflow.MlflowClient()
        run = c.create_run(c.create_experiment("forks"))
        def work(number):
            c.log_metric(run.info.run_id, f"m{number}", number)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(number,)) for number in range(3)]
        [child.start() for child in children]
        [child.join() for child in children]
        c.log_metric(run.info.run_id, "own", 1)
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"journal+{server.uri}"})
    assert done.returncode == 0, done.stderr
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("forks")

    def arrived():
        (run,) = client.search_runs([experiment.experiment_id])
        return run if len(run.data.metrics) == 4 else None

    run = wait_for(arrived, "the points of all processes are there")
    assert run.data.metrics == {"m0": 0.0, "m1": 1.0, "m2": 2.0, "own": 1.0}
    assert run.info.status == "RUNNING"


def test_our_own_tracker_joins_a_provisional_run_and_the_command_line_knows_it(server, tmp_path: Path) -> None:
    code = """
        import mlflow
        from tracking_callbacks import MLflowTracker
        mlflow.set_experiment("joined")
        with mlflow.start_run(run_name="both") as run:
            mlflow.log_metric("theirs", 1)
            with MLflowTracker(config="c.yaml", record=False).join_run(run.info.run_id) as joined:
                joined.log_metrics({"ours": 2})
                joined.log_text("ours", "ours.txt")
    """
    (tmp_path / "c.yaml").write_text("delivery: {flush_timeout: 0}")
    environment = away()
    done = run_script(code, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    stop_delivery(tmp_path)
    command = "from tracking_callbacks.cli import main; main(['status'])"
    status = run_script(command, cwd=tmp_path, env=environment)
    sync(tmp_path, server.uri)
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("joined")
    (run,) = client.search_runs([experiment.experiment_id])

    assert status.returncode == 1
    assert "both" in status.stdout
    assert environment["MLFLOW_TRACKING_URI"].removeprefix("journal+") in status.stdout
    assert "journal+" not in status.stdout
    assert run.data.metrics == {"theirs": 1.0, "ours": 2.0}
    assert artifacts(client, run.info.run_id) == ["ours.txt"]
    assert run.info.status == "FINISHED"


def test_the_last_program_that_ends_a_run_decides_its_status(server, tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys, mlflow
        mlflow.set_experiment("last")
        try:
            with mlflow.start_run() as run:
                other = "import mlflow; mlflow.start_run(); mlflow.log_metric('b', 2); mlflow.end_run()"
                environment = os.environ | {"MLFLOW_RUN_ID": run.info.run_id}
                subprocess.run([sys.executable, "-c", other], env=environment, check=True)
                assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
                mlflow.MlflowClient().update_run(run.info.run_id, name="renamed")
                mlflow.log_metric("a", 1)
                raise ValueError("no")
        except ValueError:
            pass
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"journal+{server.uri}"})
    assert done.returncode == 0, done.stderr
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("last")

    def ended():
        (run,) = client.search_runs([experiment.experiment_id])
        return run if run.info.status == "FAILED" else None

    run = wait_for(ended, "the run has failed")
    assert run.data.metrics == {"a": 1.0, "b": 2.0}
    assert run.info.run_name == "renamed"
