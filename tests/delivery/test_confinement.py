"""What a hostile journal names stays untouched, refused files are kept, and a foreign root is not used."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import tracking_callbacks
from faults.proxy import running_proxy
from processes import run_script
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._journal.confined import OutsideError, delete, inside

SOURCES = Path(tracking_callbacks.__file__).parent
DELETING = {"unlink", "rmtree", "rmdir", "remove", "removedirs", "TemporaryDirectory", "NamedTemporaryFile"}
MODULES = {"os", "shutil", "tempfile"}


def test_one_module_deletes() -> None:
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or node.attr not in DELETING:
                continue
            plain = isinstance(node.value, ast.Name) and node.value.id in MODULES
            if plain or node.attr in {"unlink", "rmtree", "rmdir"}:
                found.append(path.relative_to(SOURCES).as_posix())

    assert set(found) == {"_journal/confined.py"}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a//b", "link/x", "a\0b", "C:\\x", "n" * 300])
def test_a_path_that_leads_out_is_refused(tmp_path, name) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(OutsideError):
        inside(tmp_path, name)


def test_deleting_removes_a_link_and_not_its_target(tmp_path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "kept")
    delete(tmp_path / "run" / "link", within=tmp_path / "run")
    with pytest.raises(OutsideError):
        delete(tmp_path / "kept", within=tmp_path / "run")

    assert not (tmp_path / "run" / "link").is_symlink()
    assert (tmp_path / "kept").is_dir()


HOSTILE = """
    from pathlib import Path
    from tracking_callbacks import MLflowTracker
    from tracking_callbacks._journal.records import Artifact
    with MLflowTracker().start_run() as run:
        run.log_metrics({"loss": 1.0}, step=1)
        (run.journal.root.path / run.run_key / "link").symlink_to(Path("kept").resolve())
        for staged in ("../../kept/file.txt", str(Path("kept/file.txt").resolve()), "link/file.txt", "state.json"):
            run.journal.append(Artifact(staged))
        run.log_text("hello", "hello.txt")
    report = run.flush()
    print(run.run_id)
    print(report)
"""


def test_paths_out_of_the_run_are_rejected_and_the_rest_is_delivered(server, client, tmp_path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file.txt").write_text("mine")
    done = run_script(HOSTILE, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": server.uri})

    assert done.returncode == 0, done.stderr
    run_id, report = done.stdout.splitlines()
    assert "rejected=4" in report
    assert (tmp_path / "kept" / "file.txt").read_text() == "mine"
    names = {entry.path for entry in client.list_artifacts(run_id)}
    assert "hello.txt" in names
    assert not names & {"file.txt", "state.json"}


@pytest.fixture
def mlmodel(tmp_path: Path) -> Path:
    """A model that doubles its input, saved in MLflow's pyfunc flavor."""
    import mlflow

    class Doubler(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[float]) -> list[float]:
            return [2 * value for value in model_input]

    mlflow.pyfunc.save_model(tmp_path / "saved", python_model=Doubler(), pip_requirements=["mlflow"])
    return tmp_path / "saved"


@pytest.mark.parametrize("body", [b"<html>404</html>", json.dumps({"detail": "Not Found"}).encode()])
def test_a_model_is_registered_from_artifacts_where_the_store_has_no_logged_models(
    server, client, mlmodel, tmp_path, monkeypatch, body
) -> None:
    import mlflow

    from faults import proxy as proxies

    passage, name = proxies._Passage, f"plain-{tmp_path.name}".replace("[", "").replace("]", "")
    passed = passage._pass

    def answer(self) -> None:
        if "/logged-models" in self.path:
            self._body()
            self._answer(404, [("Content-Type", "text/plain")], body)
        else:
            passed(self)

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        monkeypatch.setattr(passage, f"do_{method}", answer)
    with running_proxy(server.uri) as proxy:
        tracker = MLflowTracker(proxy.uri, tmp_path.name, delivery=Delivery(journal_root=tmp_path / "journal"))
        with tracker.start_run() as run:
            run.log_model(mlmodel, registered_model_name=name, aliases=["champion"], tags={"task": "double"})
        report = run.flush()
        mlflow.set_tracking_uri(proxy.uri)
        try:
            predicted = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict([1.0])
        finally:
            mlflow.set_tracking_uri(None)

    assert (report.complete, report.rejected) == (True, 0)
    assert predicted == [2.0]
    version = client.get_model_version_by_alias(name, "champion")
    assert (version.version, version.run_id, version.tags["task"]) == ("1", run.run_id, "double")
    assert len(client.search_model_versions(f"name = '{name}'")) == 1


def test_the_files_of_a_refused_model_are_kept(tracker, mlmodel) -> None:
    with tracker.start_run() as run:
        run.log_model(mlmodel)
        (staged,) = (tracker.settings.journal_root / run.run_key).glob("staged/*/model/MLmodel")
        staged.write_text("no mapping")
    report = run.flush()

    assert (report.complete, report.rejected) == (True, 1)
    kept = tracker.settings.journal_root / "rejected" / run.run_key
    assert next(kept.rglob("MLmodel")).read_text() == "no mapping"


def test_a_root_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, caplog) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o775)
    run = MLflowTracker("http://127.0.0.1:9", delivery=Delivery(journal_root=root, offline=True)).start_run()
    run.end()

    assert run.journal.root.path.parent == tmp_path
    assert not list(root.iterdir())
    assert "other users can write to it (mode 775)" in caplog.text
