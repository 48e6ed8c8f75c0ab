"""Faults of the server and the network: training does not notice them, and the store is exact in the end.

Rows 1 to 6 and 21 of the fault matrix, each for the tracker core and both callbacks at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from faults.exactness import stored_runs
from faults.proxy import CREATIONS, Fault, Proxy, running_proxy
from faults.trainers import SCENARIOS, Trainer, wait_for_all
from processes import delivery_processes, free_port, run_script, stop_delivery, wait_for
from servers import start_server, stop_server
from tracking_callbacks import ConfigError, MLflowTracker
from tracking_callbacks._journal.records import now_ms

UNTIL_STOPPED = {"steps": 100_000, "pace": 0.05}
SHORT_FLUSH: dict[str, Any] = {"tracker": {"delivery": {"flush_timeout": 1}}, "flush": 0}
STARTING_TO_WAIT = 1000  # milliseconds on a busy machine, in addition to those that an exit waits for delivery


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with running_proxy(server.uri) as running:
        yield running


def test_an_unreachable_server_does_not_change_training_and_sync_delivers_everything(
    proxy, client, trainers, tmp_path
) -> None:
    proxy.refuse()
    started = trainers.start_each(tmp_path, proxy.uri, compare=True, **SHORT_FLUSH)
    wait_for_all(started)
    switch_off(tmp_path)
    proxy.accept()

    for trainer in started:
        ledger = trainer.ledger
        assert ledger.marked("weights ") == ledger.marked("untracked weights ")
        assert ledger.time_of("drained") - ledger.time_of("trained") < 1000 + STARTING_TO_WAIT
        assert "not delivered after 1 s" in trainer.errors
        assert not stored_runs(client, trainer.experiment)
    check_synced(client, started)


def test_a_server_that_starts_late_and_stops_early_gets_everything_within_the_grace(
    proxy, client, trainers, tmp_path
) -> None:
    proxy.refuse()
    started = trainers.start_each(tmp_path, proxy.uri, **UNTIL_STOPPED, **SHORT_FLUSH)
    let_all_log(started)
    proxy.accept()
    let_all_arrive(client, started)
    proxy.refuse()
    let_all_log(started)
    end_all(started)
    assert len(delivery_processes(tmp_path)) == len(started)
    proxy.accept()
    wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes without sync", 90)

    check_all(client, started)


def test_training_does_not_notice_a_server_that_is_killed_three_times(trainers, tmp_path) -> None:
    port = free_port()
    server = start_server(tmp_path, port)
    client = MlflowClient(server.uri, server.uri)
    try:
        started = trainers.start_each(tmp_path, server.uri, **UNTIL_STOPPED)
        for _ in range(3):
            let_all_arrive(client, started)
            stop_server(server)
            let_all_log(started)
            server = start_server(tmp_path, port)
        end_all(started)
        check_all(client, started)
    finally:
        stop_server(server)


def test_errors_in_three_of_ten_answers_lose_and_duplicate_nothing(proxy, client, trainers, tmp_path) -> None:
    proxy.fault(Fault("answer", share=0.3, statuses=(500, 502, 503, 429)))
    started = trainers.start_each(tmp_path, proxy.uri)
    wait_for_all(started, 170)
    proxy.fault()

    assert proxy.struck["answer"] > 10
    check_all(client, started)


def test_answers_cut_off_after_the_commit_lose_and_duplicate_nothing(proxy, client, trainers, tmp_path) -> None:
    proxy.fault(Fault("cut", paths=CREATIONS, times=len(SCENARIOS)), Fault("cut", share=0.3))
    started = trainers.start_each(tmp_path, proxy.uri)
    wait_for_all(started, 170)
    proxy.fault()

    assert all(proxy.struck[f"cut {path}"] == len(SCENARIOS) for path in CREATIONS)
    assert proxy.struck["cut"] > 20
    check_all(client, started)


def test_training_does_not_wait_for_a_server_that_answers_late_or_never(proxy, client, trainers, tmp_path) -> None:
    proxy.fault(Fault("hang"))
    variables = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}
    started = trainers.start_each(tmp_path, proxy.uri, environment=variables, **UNTIL_STOPPED)
    wait_for(lambda: proxy.struck["hang"] >= 2 * len(started), "delivery gives up waiting, and asks again", 60)
    let_all_log(started)
    assert not any(stored_runs(client, trainer.experiment) for trainer in started)
    proxy.fault(Fault("slow", seconds=10))
    wait_for(lambda: proxy.late >= len(started), "all answers come 10 s late", 60)
    let_all_log(started)
    proxy.fault()
    end_all(started)

    check_all(client, started)


def test_wrong_credentials_cause_one_warning_and_lose_nothing(proxy, client, trainers, tmp_path) -> None:
    proxy.fault(Fault("answer", statuses=(401, 403)))
    started = trainers.start_each(tmp_path, proxy.uri, **UNTIL_STOPPED, **SHORT_FLUSH)
    let_all_warn(started)
    let_all_log(started)
    end_all(started)
    switch_off(tmp_path)
    proxy.fault()

    for trainer in started:
        (warning,) = warnings_of(trainer)
        assert "the store refuses the credentials (40" in warning
        assert str(trainer.journal) in warning
    check_synced(client, started)


def test_delivery_names_an_experiment_deleted_during_the_run_and_waits_for_it(
    proxy, client, trainers, tmp_path
) -> None:
    started = trainers.start_each(tmp_path, proxy.uri, **UNTIL_STOPPED, **SHORT_FLUSH)
    let_all_arrive(client, started)
    deleted = [client.get_experiment_by_name(trainer.experiment).experiment_id for trainer in started]
    for experiment_id in deleted:
        client.delete_experiment(experiment_id)
    let_all_warn(started)
    end_all(started)
    switch_off(tmp_path)
    for experiment_id in deleted:
        client.restore_experiment(experiment_id)

    for trainer in started:
        (warning,) = warnings_of(trainer)
        assert "is deleted; restore it" in warning
    check_synced(client, started)


def test_delivery_names_an_experiment_deleted_before_the_run_and_waits_for_it(
    server, client, trainers, tmp_path
) -> None:
    experiment_id = client.create_experiment(tmp_path.name)
    client.delete_experiment(experiment_id)
    variables = {"MLFLOW_EXPERIMENT_NAME": tmp_path.name, "TRACKING_CALLBACKS_JOURNAL": str(tmp_path / "journal")}
    trainer = trainers.start(
        "core", tmp_path / "core", server.uri, environment=variables, **UNTIL_STOPPED, **SHORT_FLUSH
    )
    let_all_warn([trainer])
    end_all([trainer])
    switch_off(tmp_path)
    client.restore_experiment(experiment_id)

    (warning,) = warnings_of(trainer)
    assert f"experiment '{tmp_path.name}' is deleted; restore it" in warning
    check_synced(client, [trainer])


@pytest.mark.parametrize("uri", ["htp://server:5000", "http://", "http://server:port", "http://[::1", "sqlite://"])
def test_a_malformed_uri_raises_at_construction(uri: str) -> None:
    with pytest.raises(ConfigError, match="tracking_uri") as refused:
        MLflowTracker(uri)

    assert refused.value.setting == "tracking_uri"


def test_a_creation_that_is_committed_after_its_timeout_happens_once(proxy, client, trainers, tmp_path) -> None:
    proxy.fault(Fault("late", paths=CREATIONS, times=len(SCENARIOS), seconds=5))
    started = trainers.start_each(tmp_path, proxy.uri, environment={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    wait_for_all(started)

    assert {path: proxy.struck[f"late {path}"] for path in CREATIONS} == dict.fromkeys(CREATIONS, len(SCENARIOS))
    check_all(client, started)


# -- shared by the tests ---------------------------------------------------------------------------------------------


def let_all_log(started: Sequence[Trainer], calls: int = 5) -> None:
    """Wait until every trainer has logged points that many times more."""
    before = [trainer.points() for trainer in started]
    wait_for(
        lambda: all(trainer.points() >= count + calls for trainer, count in zip(started, before, strict=True)),
        "the trainers go on logging",
        seconds=60,
    )


def let_all_arrive(client: MlflowClient, started: Sequence[Trainer]) -> None:
    """Wait until the store has points that every trainer logs from now on."""
    since = now_ms()

    def arrived(trainer: Trainer) -> bool:
        runs = stored_runs(client, trainer.experiment).values()
        return any(metric.timestamp >= since for run in runs for metric in run.data._metric_objs)

    for trainer in started:
        wait_for(lambda now=trainer: arrived(now), f"{trainer.folder.name} arrives", 60)


def let_all_warn(started: Sequence[Trainer]) -> None:
    """Wait until every trainer has warned that nothing is delivered."""
    for trainer in started:
        wait_for(lambda now=trainer: warnings_of(now), f"{trainer.folder.name} warns", 60)


def warnings_of(trainer: Trainer) -> list[str]:
    """Return a trainer's warnings about a fault that will not go away by itself."""
    return [line for line in trainer.errors.splitlines() if "nothing is delivered" in line]


def end_all(started: Sequence[Trainer]) -> None:
    """Stop all trainers and wait for them."""
    for trainer in started:
        trainer.stop()
    wait_for_all(started)


def switch_off(folder: Path) -> None:
    """Kill the delivery processes, as when the machine is switched off after training."""
    stop_delivery(folder)


def check_all(client: MlflowClient, started: Sequence[Trainer]) -> None:
    """Check that every trainer finished without waiting for anything, and that the store is exact."""
    for trainer in started:
        trainer.delivered()
        trainer.check_nothing_waited()
        (run,) = trainer.check_exact(client)
        assert run.info.status == "FINISHED"


def check_synced(client: MlflowClient, started: Sequence[Trainer]) -> None:
    """Check that ``sync`` delivers exactly what the trainers left behind."""
    (journal,) = {trainer.journal for trainer in started}
    synced = run_script(
        f"from tracking_callbacks.cli import main; main(['sync', {str(journal)!r}])", cwd=journal.parent
    )

    assert synced.returncode == 0, synced.stderr
    check_all(client, started)
