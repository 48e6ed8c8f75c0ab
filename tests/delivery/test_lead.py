"""Training processes that share a local store: one delivery process imports MLflow and delivers for all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from mlflow import MlflowClient

from delivery.test_s3 import bucket_of, running_s3
from processes import delivery_processes, script, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.lead import Lead
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.records import StoreAddress

WITH_MLFLOW_BYTES = 100e6  # a delivery process without it takes 30 MB

TRAINER = """
    import sys
    from pathlib import Path
    from tracking_callbacks import Delivery, MLflowTracker
    delivery = Delivery(flush_timeout=60, grace=0)
    run = MLflowTracker(experiment_name={experiment!r}, record=False, delivery=delivery).start_run({name!r})
    run.log_metrics({{"loss": 0.5}}, step=0)
    print("begun", flush=True)
    for line in sys.stdin:
        step = int(line)
        run.log_metrics({{"loss": 0.5 / (step + 1)}}, step=step)
        run.log_text("content", f"{name}-{{step}}.txt")
    run.end()
    print(run.flush().complete, flush=True)
"""


@contextmanager
def trainers(folder: Path, *names: str) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        started = [
            stack.enter_context(script(TRAINER.format(experiment="shared", name=name), cwd=folder)) for name in names
        ]
        for trainer in started:
            assert trainer.stdout.readline() == "begun\n"
        yield started


def log(trainer: subprocess.Popen[str], step: int) -> None:
    trainer.stdin.write(f"{step}\n")
    trainer.stdin.flush()


def end(trainer: subprocess.Popen[str]) -> tuple[str, str]:
    return trainer.communicate(timeout=90)


def losses(folder: Path, experiment: str = "shared") -> dict[str, list[tuple[int, float]]]:
    """Return the points of each run by its name; a store that is not there yet is left to delivery, which makes it."""
    if not (folder / "mlflow.db").exists():
        return {}
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    if (found := client.get_experiment_by_name(experiment)) is None:
        return {}
    return {
        run.info.run_name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
        for run in client.search_runs([found.experiment_id])
    }


def leaders(folder: Path) -> list[psutil.Process]:
    return [one for one in delivery_processes(folder) if one.memory_info().rss > WITH_MLFLOW_BYTES]


def test_one_of_many_delivery_processes_imports_mlflow_and_delivers_for_all(tmp_path: Path) -> None:
    names = ["first", "second", "third"]
    with trainers(tmp_path, *names) as started:
        wait_for(lambda: set(losses(tmp_path)) == set(names), "every run has begun in the store", 60)

        assert len(delivery_processes(tmp_path)) == 3
        assert len(leaders(tmp_path)) == 1

        for trainer in started:
            log(trainer, 1)
            assert end(trainer)[0] == "True\n"
    wait_for(lambda: not delivery_processes(tmp_path), "delivery ends", 30)

    assert losses(tmp_path) == {name: [(0, 0.5), (1, 0.25)] for name in names}
    assert not list((tmp_path / ".tracking_callbacks").glob(".lead-*"))


def test_another_process_leads_when_the_first_is_killed_or_its_training_ends(tmp_path: Path) -> None:
    names = ["first", "second", "third"]
    with trainers(tmp_path, *names) as started:
        wait_for(lambda: set(losses(tmp_path)) == set(names), "every run has begun in the store", 60)
        (leader,) = leaders(tmp_path)
        leader.kill()
        for trainer in started:
            log(trainer, 1)
        wait_for(lambda: all(len(points) == 2 for points in losses(tmp_path).values()), "another delivers", 60)
        for trainer in started:
            assert end(trainer)[0] == "True\n"
            others = [one for one in started if one.poll() is None]
            for other in others:
                log(other, 2)

    wanted = {"first": 2, "second": 3, "third": 3}
    found = losses(tmp_path)
    assert {name: len(set(points)) for name, points in found.items()} == wanted
    assert found["third"] == [(0, 0.5), (1, 0.25), (2, 0.5 / 3), (2, 0.5 / 3)]


def test_a_run_that_the_leader_cannot_deliver_goes_back_to_its_own_process(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "s3").mkdir()
    with running_s3(tmp_path / "s3") as keys:
        client = MlflowClient(uri, uri)
        client.create_experiment("local", str(tmp_path / "artifacts"))
        client.create_experiment("cloud", "s3://runs/cloud")
        here = {"MLFLOW_S3_ENDPOINT_URL": keys["MLFLOW_S3_ENDPOINT_URL"]}
        with ExitStack() as stack:
            wrong = here | {"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG0", "AWS_SECRET_ACCESS_KEY": "wrong"}
            leading = stack.enter_context(
                script(TRAINER.format(experiment="local", name="leading"), cwd=tmp_path, env=wrong)
            )
            wait_for(lambda: losses(tmp_path, "local"), "the first process leads", 60)
            other = stack.enter_context(
                script(TRAINER.format(experiment="cloud", name="other"), cwd=tmp_path, env=keys)
            )
            wait_for(lambda: losses(tmp_path, "cloud"), "it delivers for the second", 60)
            assert len(leaders(tmp_path)) == 1
            log(other, 1)
            wait_for(lambda: [one.key for one in bucket_of(keys).objects.all()], "its artifact arrives", 60)

            assert len(leaders(tmp_path)) == 2
            assert end(other)[0] == "begun\nTrue\n"
            assert end(leading)[0] == "begun\nTrue\n"


def test_a_run_that_is_kept_offline_is_not_delivered_by_the_process_that_leads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = tmp_path / ".tracking_callbacks"
    offline = MLflowTracker(
        f"sqlite:///{tmp_path / 'mlflow.db'}",
        "shared",
        record=False,
        delivery=Delivery(journal_root=journal, offline=True),
    )
    with offline.start_run("offline") as run:
        run.log_metrics({"loss": 1.0})
        with trainers(tmp_path, "online") as (trainer,):
            assert end(trainer)[0] == "True\n"

    assert set(losses(tmp_path)) == {"online"}
    assert run.report().pending == 1


def test_only_local_stores_without_credentials_have_a_lead(tmp_path: Path) -> None:
    root = JournalRoot(tmp_path)
    address = StoreAddress("sqlite:////data/mlflow.db", "/data")

    first, second = Lead(root, address), Lead(root, address)
    assert first.taken()
    assert first.taken()
    assert not second.taken()
    assert Lead(root, StoreAddress("sqlite:////data/mlflow.db", "/elsewhere")).taken()
    first.release()
    assert second.taken()
    for uri in ("http://127.0.0.1:5000", "postgresql+psycopg2://mlflow@host/db", "databricks"):
        assert not Lead(root, StoreAddress(uri, "/data")).shared
        assert not Lead(root, StoreAddress("sqlite:////data/mlflow.db", "/data", uri)).shared
