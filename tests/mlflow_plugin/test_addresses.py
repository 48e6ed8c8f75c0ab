"""The URI decides: where it leads, what is wrong with it, and that the rest of the package knows it as the real one."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from processes import run_script
from tracking_callbacks import ConfigError, MLflowTracker
from tracking_callbacks.settings import resolve_settings

pytestmark = pytest.mark.usefixtures("fresh_mlflow")


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("journal+://", "the real store after journal\\+"),
        ("journal+nonsense://host", "journal\\+nonsense"),
        ("journal+http://", "a host after http://"),
        ("journal+sqlite://", "a file, as in sqlite"),
    ],
)
def test_a_uri_that_names_no_store_raises_at_its_first_use(uri: str, complaint: str) -> None:
    mlflow.set_tracking_uri(uri)

    with pytest.raises(MlflowException, match=complaint):
        MlflowClient().get_experiment_by_name("any")


def test_the_prefix_alone_raises(tmp_path: Path) -> None:
    with pytest.raises(MlflowException):
        MlflowClient("journal+").get_experiment_by_name("any")
    with pytest.raises(ConfigError, match="the real store after journal"):
        MLflowTracker("journal+")


def test_a_journal_root_that_cannot_be_written_raises_at_the_first_run(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "file" / "root"))
    client = MlflowClient("journal+http://127.0.0.1:1")

    with pytest.raises(MlflowException, match=r"journal root .*file/root cannot be used.*TRACKING_CALLBACKS_JOURNAL"):
        client.create_run("0")


def test_a_config_file_with_a_mistake_raises_at_the_first_run(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("delivery: {flush_timeout: soon}")
    monkeypatch.setenv("TRACKING_CALLBACKS_CONFIG", str(tmp_path / "bad.yaml"))

    with pytest.raises(MlflowException, match="flush_timeout: expected a number of seconds"):
        MlflowClient("journal+http://127.0.0.1:2").create_run("0")


@pytest.mark.parametrize("uri", ["http://u:p@host:1", "sqlite:///here.db", "file:///tmp/store"])
def test_a_tracker_is_the_same_with_and_without_the_prefix(uri: str, monkeypatch) -> None:
    plain, prefixed = resolve_settings(uri), resolve_settings(f"journal+{uri}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"journal+{uri}")
    from_environment = resolve_settings(environ=os.environ)

    assert prefixed == plain
    assert from_environment.store == plain.store
    assert from_environment.tracking_uri == plain.tracking_uri


def test_the_environments_uri_is_no_contradiction_to_the_arguments(caplog) -> None:
    resolve_settings("http://host", environ={"MLFLOW_TRACKING_URI": "journal+http://host"})

    assert not caplog.records


def test_importing_mlflow_imports_nothing_of_the_package_but_the_builders(tmp_path: Path) -> None:
    code = """
        import sys, mlflow, mlflow.tracking, mlflow.store.artifact.artifact_repository_registry
        print(sorted(name for name in sys.modules if name.startswith(("tracking_callbacks", "msgspec"))))
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": "journal+http://127.0.0.1:1"})

    expected = ["tracking_callbacks", "tracking_callbacks.mlflow_plugin", "tracking_callbacks.mlflow_plugin.builders"]
    assert done.stdout.strip() == str(expected), done.stderr


def test_a_program_that_never_logs_starts_nothing(tmp_path: Path) -> None:
    code = """
        import mlflow, psutil
        client = mlflow.MlflowClient()
        assert client.tracking_uri == "journal+http://127.0.0.1:1"
        try:
            client.search_runs(["0"])
        except mlflow.exceptions.MlflowException as error:
            print(error.error_code)
        print(psutil.Process().children())
    """
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": "journal+http://127.0.0.1:1"})

    assert done.stdout.split("\n")[:2] == ["TEMPORARILY_UNAVAILABLE", "[]"], done.stderr
    assert not (tmp_path / ".tracking_callbacks").exists()
