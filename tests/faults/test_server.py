"""Faults of the server and of the way to it: training does not notice, and the store is exact in the end."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import start_server, stop_server
from processes import delivery_processes, free_port, stop_delivery, wait_for
from tracking_callbacks import ConfigError, MLflowTracker

pytest.register_assert_rewrite("faults.exactness")

from faults.exactness import Training, check_exact, check_nothing_waited, runs_of, trainings  # noqa: E402
from faults.proxy import CREATIONS, Fault, Proxy, running_proxy  # noqa: E402

UNTIL_STOPPED = {"steps": 100_000, "pause": 0.02}


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with running_proxy(server.uri) as running:
        yield running


@pytest.fixture(scope="session")
def mlmodel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model in MLflow's pyfunc flavor, for the tracker core."""
    import mlflow

    class Doubler(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[float]) -> list[float]:
            return [2 * value for value in model_input]

    folder = tmp_path_factory.mktemp("mlmodel") / "doubler"
    mlflow.pyfunc.save_model(folder, python_model=Doubler(), pip_requirements=["mlflow"])
    return str(folder)


def sync(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", "sync", str(folder)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_absent_server_changes_no_training_and_sync_brings_everything(proxy, client, mlmodel, tmp_path) -> None:
    proxy.refuse()
    with trainings(tmp_path, proxy.uri, flush_timeout=1, mlmodel=mlmodel, compare=True) as running:
        for training in running:
            assert training.ended() == 0, training.errors
    stop_delivery(tmp_path)  # the machine is switched off
    proxy.accept()

    for training in running:
        untracked, tracked = training.weights()
        assert tracked == untracked
        check_nothing_waited(training)
        assert "not delivered after 1 s" in training.errors
        assert not runs_of(client, training.experiment)
        check_synced(client, training)


def test_errors_and_lost_answers_lose_and_double_nothing(proxy, client, mlmodel, tmp_path) -> None:
    proxy.fault(
        Fault("cut", paths=CREATIONS, times=2),
        Fault("cut", share=0.1),
        Fault("answer", share=0.2),
    )
    with trainings(tmp_path, proxy.uri, mlmodel=mlmodel) as running:
        for training in running:
            assert training.ended(170) == 0, training.errors
    proxy.fault()

    assert all(proxy.struck[f"cut {path}"] == 2 for path in CREATIONS)
    assert proxy.struck["answer"] > 10
    for training in running:
        check_nothing_waited(training)
        check_exact(client, training)


def test_a_server_that_is_killed_three_times_is_not_noticed(mlmodel, tmp_path) -> None:
    port = free_port()
    server = start_server(tmp_path, port)
    try:
        with trainings(tmp_path, server.uri, mlmodel=mlmodel, **UNTIL_STOPPED) as running:
            for _ in range(3):
                let_all_log(running)
                stop_server(server)
                let_all_log(running)
                server = start_server(tmp_path, port)
            end_all(running)
        for training in running:
            check_nothing_waited(training)
            check_exact(MlflowClient(server.uri, server.uri), training)
    finally:
        stop_server(server)


def let_all_log(running: list[Training], records: int = 5) -> None:
    """Wait until every training has logged so many records more."""
    before = [training.accepted_points() for training in running]
    wait_for(
        lambda: all(
            training.accepted_points() >= count + records for training, count in zip(running, before, strict=True)
        ),
        "the trainings log on",
        seconds=60,
    )


def test_wrong_credentials_are_named_once_and_cost_nothing(proxy, client, mlmodel, tmp_path) -> None:
    proxy.fault(Fault("answer", statuses=(401, 403)))
    with trainings(tmp_path, proxy.uri, mlmodel=mlmodel, flush_timeout=1, **UNTIL_STOPPED) as running:
        for training in running:
            wait_for(lambda told=training: "nothing is delivered" in told.errors, f"{training.kind} is told", 60)
        let_all_log(running)
        end_all(running)
    stop_delivery(tmp_path)
    proxy.fault()

    for training in running:
        (told,) = [line for line in training.errors.splitlines() if "nothing is delivered" in line]
        assert "the store refuses the credentials (40" in told
        assert str(training.folder / ".tracking_callbacks") in told
        check_nothing_waited(training)
        check_synced(client, training)


def test_an_experiment_that_is_deleted_under_a_run_is_named_and_waited_for(proxy, client, mlmodel, tmp_path) -> None:
    with trainings(tmp_path, proxy.uri, mlmodel=mlmodel, flush_timeout=1, **UNTIL_STOPPED) as running:
        for training in running:
            wait_for(lambda begun=training: arrived(client, begun), f"{training.kind} has arrived", 60)
        deleted = [client.get_experiment_by_name(training.experiment).experiment_id for training in running]
        for experiment_id in deleted:
            client.delete_experiment(experiment_id)
        for training in running:
            wait_for(lambda told=training: "nothing is delivered" in told.errors, f"{training.kind} is told", 60)
        end_all(running)
    stop_delivery(tmp_path)
    for experiment_id in deleted:
        client.restore_experiment(experiment_id)

    for training in running:
        (told,) = [line for line in training.errors.splitlines() if "nothing is delivered" in line]
        assert "is deleted; restore it" in told
        check_synced(client, training)


def test_an_experiment_that_was_deleted_before_is_named_and_waited_for(server, client, tmp_path) -> None:
    experiment_id = client.create_experiment(tmp_path.name)
    client.delete_experiment(experiment_id)
    env = {"MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    with trainings(tmp_path, server.uri, ["core"], env, flush_timeout=1, **UNTIL_STOPPED) as (training,):
        wait_for(lambda: "nothing is delivered" in training.errors, "it is told", 60)
        end_all([training])
    stop_delivery(tmp_path)
    client.restore_experiment(experiment_id)

    assert f"experiment '{tmp_path.name}' is deleted; restore it" in training.errors
    check_synced(client, dataclasses.replace(training, experiment=tmp_path.name))


@pytest.mark.parametrize("uri", ["htp://server:5000", "http://", "http://server:port", "http://[::1", "sqlite://"])
def test_a_malformed_uri_raises_at_construction(uri: str) -> None:
    with pytest.raises(ConfigError, match="tracking_uri") as refused:
        MLflowTracker(uri)

    assert refused.value.setting == "tracking_uri"


def test_a_creation_that_times_out_and_is_committed_later_is_made_once(proxy, client, mlmodel, tmp_path) -> None:
    proxy.fault(Fault("late", paths=CREATIONS, times=3, seconds=5))
    with trainings(tmp_path, proxy.uri, mlmodel=mlmodel, env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}) as running:
        for training in running:
            assert training.ended() == 0, training.errors

    assert {path: proxy.struck[f"late {path}"] for path in CREATIONS} == dict.fromkeys(CREATIONS, 3)
    for training in running:
        check_nothing_waited(training)
        check_exact(client, training)


def end_all(running: list[Training]) -> None:
    for training in running:
        training.stop()
    for training in running:
        assert training.ended() == 0, training.errors


def arrived(client: MlflowClient, training: Training) -> bool:
    """Return whether the first points of a training are in the store."""
    return any(run.data.metrics for run in runs_of(client, training.experiment))


def check_synced(client: MlflowClient, training: Training) -> None:
    """What an ended training has left behind is delivered by ``sync``, exactly."""
    synced = sync(training.folder)

    assert synced.returncode == 0, synced.stderr
    check_exact(client, training)


def test_a_server_that_never_answers_or_late_is_not_waited_for(proxy, client, mlmodel, tmp_path) -> None:
    proxy.fault(Fault("hang"))
    env = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    with trainings(tmp_path, proxy.uri, env=env, mlmodel=mlmodel, **UNTIL_STOPPED) as running:
        wait_for(lambda: proxy.struck["hang"] >= 2 * len(running), "requests hang", 60)
        let_all_log(running)
        assert not any(runs_of(client, training.experiment) for training in running)
        proxy.fault(Fault("slow", paths=("/runs/log-batch",), times=2 * len(running), seconds=10))
        wait_for(lambda: proxy.struck["slow"] >= len(running), "answers are late", 60)
        let_all_log(running)
        end_all(running)

    for training in running:
        check_nothing_waited(training)
        check_exact(client, training)


def test_a_server_that_comes_late_and_leaves_early_gets_everything_within_the_grace(
    proxy, client, mlmodel, tmp_path
) -> None:
    proxy.refuse()
    with trainings(tmp_path, proxy.uri, mlmodel=mlmodel, flush_timeout=1, **UNTIL_STOPPED) as running:
        let_all_log(running)
        proxy.accept()
        for training in running:
            wait_for(lambda begun=training: arrived(client, begun), f"{training.kind} has arrived", 60)
        proxy.refuse()
        let_all_log(running)
        end_all(running)
    assert len(delivery_processes(tmp_path)) == len(running)
    proxy.accept()
    wait_for(lambda: not delivery_processes(tmp_path), "delivery comes to its end without sync", 90)

    for training in running:
        check_nothing_waited(training)
        check_exact(client, training)
