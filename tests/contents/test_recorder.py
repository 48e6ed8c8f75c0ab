"""What a run records automatically: config, source, environment, log and machine; each can be switched off."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processes import artifacts, own_artifacts, run_script, wait_for
from tracking_callbacks import ConfigError, Delivery, MLflowTracker, Recording
from tracking_callbacks._contents.environment import installed_packages
from tracking_callbacks._contents.git import GitSnapshot, find_repository

SWITCHES = {"config": "config/", "source": "source/", "environment": "environment/", "python_logging": "logs/"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, which contains the program that "was started"."""
    git(tmp_path, "init")
    (tmp_path / "train.py").write_text("lr = 1\n")
    (tmp_path / ".gitignore").write_text("pyproject.toml\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr=3"])
    return tmp_path


def text(client, run_id: str, path: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, path, str(folder))).read_text()


def tracker_of(server, shared_journal, **arguments) -> MLflowTracker:
    return MLflowTracker(server.uri, "pieces", **arguments, delivery=Delivery(journal_root=shared_journal))


def test_a_run_records_config_source_environment_and_log(server, shared_journal, client, repository, tmp_path) -> None:
    git(repository, "remote", "add", "origin", "https://me:pw@github.com/a/b.git")
    (repository / "train.py").write_text("lr = 3\n")
    (repository / "new.py").write_text("")
    (repository / "conf").mkdir()
    (repository / "conf" / "a.yaml").write_text("lr: 3\npassword: hidden words\n")
    tracker = tracker_of(server, shared_journal, record=Recording(config_files=["conf/a.yaml"]))
    with tracker.start_run(tags={"dataset_version": "3"}) as run:
        (repository / "train.py").write_text("lr = 4\n")  # edited while it trains
        logging.getLogger("my.code").warning("step %d", 7)
    assert run.flush().complete

    tags = client.get_run(run.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert tags["mlflow.source.git.branch"] == "main"
    assert tags["mlflow.source.git.dirty"] == "true"
    assert tags["mlflow.source.git.repoURL"] == "https://github.com/a/b.git"
    assert (tags["mlflow.source.name"], tags["dataset_version"]) == ("train.py", "3")
    assert artifacts(client, run.run_id) == [
        *("config/files/conf/a.yaml", "config/run.json", "environment/environment.json"),
        *("environment/requirements.txt", "logs/train.log"),
        *("source/diff.patch", "source/train.py", "source/untracked.txt"),
    ]
    patch = text(client, run.run_id, "source/diff.patch", tmp_path / "down")
    assert "-lr = 1" in patch
    assert text(client, run.run_id, "source/untracked.txt", tmp_path / "down") == "conf/\nnew.py\n"
    assert text(client, run.run_id, "config/files/conf/a.yaml", tmp_path / "down") == "lr: 3\npassword: ***\n"
    assert "WARNING my.code: step 7\n" in text(client, run.run_id, "logs/train.log", tmp_path / "down")
    settings = json.loads(text(client, run.run_id, "config/run.json", tmp_path / "down"))
    assert settings["arguments"] == ["train.py", "--lr=3"]
    assert settings["tracker"]["experiment_name"] == "pieces"


def test_applying_the_patch_reproduces_the_changes(repository) -> None:
    (repository / "train.py").write_text("lr = 3\ntoken = args.token\n")
    patch = GitSnapshot(repository).finish().patch
    (repository / "saved.patch").write_text(patch)
    git(repository, "checkout", "train.py")
    git(repository, "apply", "saved.patch")

    assert (repository / "train.py").read_text() == "lr = 3\ntoken = args.token\n"


def test_a_large_patch_is_truncated(repository) -> None:
    (repository / "train.py").write_text("x = 1\n" * 400_000)
    patch = GitSnapshot(repository).finish().patch

    assert "Cut after 1000000 bytes" in patch
    assert 900_000 < len(patch) < 1_010_000


def test_recording_git_works_without_a_commit_and_without_a_repository(tmp_path) -> None:
    assert find_repository(tmp_path) is None
    git(tmp_path, "init")
    state = GitSnapshot(tmp_path).finish()
    assert (state.patch, state.tags.get("mlflow.source.git.commit")) == ("", None)
    assert "pyproject.toml" in state.untracked


def test_when_git_is_slow_the_commit_is_recorded_and_no_process_is_left_running(
    repository, monkeypatch, tmp_path
) -> None:
    real = shutil.which("git")
    commit = git(repository, "rev-parse", "HEAD").strip()
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase "$*" in *status*|*diff*) exec sleep 60;; *) exec {real} "$@";; esac\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tracking_callbacks._contents.git._GIT_SECONDS", 0.5)
    state = GitSnapshot(repository).finish()

    assert (state.tags, state.patch) == ({"mlflow.source.git.commit": commit}, "")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_workers_forked_while_git_starts_do_not_delay_it(repository, monkeypatch) -> None:
    monkeypatch.setattr("tracking_callbacks._contents.git._GIT_SECONDS", 5.0)
    workers = []
    try:
        for _ in range(5):
            with ThreadPoolExecutor(1) as thread:
                looked = thread.submit(lambda: GitSnapshot(repository).finish())
                while not looked.done() and len(workers) < 300:
                    if (pid := os.fork()) == 0:
                        signal.pause()
                        os._exit(0)
                    workers.append(pid)
                commit = looked.result(20).tags.get("mlflow.source.git.commit")
            assert commit == git(repository, "rev-parse", "HEAD").strip()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("switch", [*SWITCHES, "everything"])
def test_each_kind_of_content_can_be_switched_off(server, shared_journal, client, repository, switch) -> None:
    (repository / "train.py").write_text("lr = 3\n")
    record = False if switch == "everything" else Recording(**{switch: False})
    with tracker_of(server, shared_journal, record=record).start_run() as run:
        run.log_text("x", "mine.txt")
        logging.getLogger("my.code").warning("said")
    run.flush()

    there = {place.split("/")[0] + "/" for place in artifacts(client, run.run_id) if "/" in place}
    assert there == (set() if switch == "everything" else set(SWITCHES.values()) - {SWITCHES[switch]})
    assert own_artifacts(client, run.run_id) == ["mine.txt"]
    has_commit = "mlflow.source.git.commit" in client.get_run(run.run_id).data.tags
    assert has_commit == (switch not in ("source", "everything"))


def test_an_argument_can_switch_content_on_when_the_config_file_records_nothing(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("record: false\n")
    record = MLflowTracker(config=tmp_path / "c.yaml", record=Recording(environment=True)).settings.record

    assert record == MLflowTracker(record=Recording.only(environment=True)).settings.record
    assert record.environment
    others = (record.source, record.config, record.python_logging, record.system_metrics)
    assert not any(others)


def test_content_that_cannot_be_recorded_stops_neither_the_rest_nor_training(
    server, shared_journal, client, repository, monkeypatch, caplog
) -> None:
    import tracking_callbacks._contents.environment as environment

    monkeypatch.setattr(environment, "_VARIABLES", 3)  # a bug in the package itself
    with tracker_of(server, shared_journal).start_run() as run:
        run.log_metrics({"loss": 1.0})
    report = run.flush()

    assert (report.complete, report.delivered) == (True, 1)
    assert "tracking failed in ContentsRecorder._record_environment" in caplog.text
    folders = {place.split("/")[0] for place in artifacts(client, run.run_id)}
    assert folders >= {"config", "source"}
    assert "environment" not in folders


def test_a_continued_run_keeps_its_first_contents_and_a_joined_run_gets_none(
    server, shared_journal, client, repository
) -> None:
    tracker = tracker_of(server, shared_journal, record=Recording(python_logging=False))
    with tracker.start_run() as first:
        pass
    first.flush()
    commit = client.get_run(first.run_id).data.tags["mlflow.source.git.commit"]
    git(repository, "commit", "--allow-empty", "-m", "two")
    with tracker.start_run(run_id=first.run_id) as resumed:
        pass
    resumed.flush()
    before = artifacts(client, first.run_id)
    joined = tracker.join_run(first.run_id)
    joined.log_metrics({"loss": 1.0})
    joined.end()
    joined.flush()

    assert client.get_run(first.run_id).data.tags["mlflow.source.git.commit"] == commit
    assert {path.split("/resumed-")[0] for path in before if "/resumed-" in path} == {"config", "environment", "source"}
    assert artifacts(client, first.run_id) == before


def test_the_log_arrives_during_the_run_and_a_reopened_run_gets_another_one(
    server, shared_journal, client, tmp_path
) -> None:
    run = tracker_of(server, shared_journal, record=Recording(source=False, environment=False)).start_run()
    logging.getLogger("my.code").warning("first")
    wait_for(lambda: run.run_id and "logs/train.log" in artifacts(client, run.run_id), "the log arrives")
    logging.getLogger("my.code").warning("second")
    run.end()
    logging.getLogger("my.code").warning("in between")
    assert run.flush().complete
    run.reopen()
    logging.getLogger("my.code").warning("third")
    run.end()
    assert run.flush().complete

    logs = [path for path in artifacts(client, run.run_id) if path.startswith("logs/")]
    said = [text(client, run.run_id, path, tmp_path / "down") for path in logs]
    assert [path.replace("resumed-", "|").split("|")[0] for path in logs] == ["logs/", "logs/train.log"]
    assert [[line.split()[-1] for line in log.splitlines()] for log in said] == [["third"], ["first", "second"]]


def test_the_log_of_a_killed_trainer_arrives(server, client, tmp_path) -> None:
    code = """
        import logging, os, signal
        from tracking_callbacks import Delivery, MLflowTracker, Recording
        run = MLflowTracker().start_run()
        for number in range(1000):
            logging.getLogger("my.code").warning("line %d", number)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name})

    def killed():
        experiment = client.get_experiment_by_name(tmp_path.name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return runs and runs[0].info.status == "KILLED" and runs[0]

    run = wait_for(killed, "the run is KILLED", seconds=60)
    log = text(client, run.info.run_id, "logs/train.log", tmp_path / "down")
    assert [line.split()[-1] for line in log.splitlines()] == [str(number) for number in range(1000)]


def test_missing_config_files_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"config_files.*absent\.yaml"):
        MLflowTracker(record=Recording(config_files=["absent.yaml"]))
    with pytest.raises(ConfigError, match="config_files: expected a list of paths"):
        MLflowTracker(record=Recording(config_files="a.yaml"))
    (tmp_path / "c.yaml").write_text("record: {source: 3}\n")
    with pytest.raises(ConfigError, match=r"record\.source: expected true or false"):
        MLflowTracker(config=tmp_path / "c.yaml")


def test_installed_packages_match_those_that_pip_lists() -> None:
    from importlib.metadata import distributions

    listed = dict(line.split("==") for line in installed_packages(sys.path) if "==" in line and line[0] != "#")

    found: dict[str, str] = {}
    for distribution in distributions():  # setuptools, once imported, adds older ones at the end of the path
        name = distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        found.setdefault(name, distribution.version)
    for name in (found.keys() & listed.keys()) - {"tracking-callbacks"}:
        assert listed[name] == found[name]
    assert {"mlflow", "msgspec", "filelock"} <= set(listed)


def test_system_metrics_have_mlflows_names(server, client, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = MLflowTracker(server.uri, "machine", delivery=Delivery(journal_root=tmp_path / "journal"))
    with tracker.start_run() as run:
        names = wait_for(
            lambda: (
                [key for key in client.get_run(run.run_id).data.metrics if key.startswith("system/")]
                if run.run_id
                else []
            ),
            "samples arrive",
            seconds=60,
        )
    report = run.flush()

    assert set(names) >= {
        *("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"),
        *("system/disk_usage_percentage", "system/network_receive_megabytes"),
    }
    points = client.get_metric_history(run.run_id, "system/system_memory_usage_megabytes")
    info = client.get_run(run.run_id).info
    assert all(info.start_time <= point.timestamp <= info.end_time for point in points)
    assert [point.step for point in points] == sorted(point.step for point in points)
    assert (report.complete, report.delivered) == (True, 0)  # no verb logged them
    assert MLflowTracker(record=Recording(system_metrics=False)).settings.record.system_metrics is False
