"""A journal is input from elsewhere: what it names outside its run's folder is neither sent nor deleted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tracking_callbacks
from tracking_callbacks._delivery.files import _take
from tracking_callbacks._journal import records
from tracking_callbacks._journal.confined import OutsideError, delete, inside
from tracking_callbacks._journal.layout import RunFolder

SOURCES = Path(tracking_callbacks.__file__).parent
DELETING = {"unlink", "rmtree", "rmdir", "remove", "removedirs", "TemporaryDirectory", "NamedTemporaryFile"}
MODULES = {"os", "shutil", "tempfile"}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious" / "a.txt"
    path.parent.mkdir()
    path.write_text("mine")
    return path


@pytest.mark.parametrize("way", ["absolute", "dots", "link", "the folder itself", "a link in a snapshot"])
@pytest.mark.parametrize("kind", ["artifact", "drawing", "model"])
def test_a_staged_path_that_leads_elsewhere_is_refused_and_nothing_is_touched(
    tracker, client, precious, way, kind
) -> None:
    run = tracker.start_run()
    folder = run.journal.root.run(run.run_key).path
    (folder / "staged" / "planted").mkdir(parents=True)
    (folder / "staged" / "link").symlink_to(precious.parent)
    (folder / "staged" / "planted" / "b.txt").symlink_to(precious)
    staged = {
        "absolute": str(precious),
        "dots": f"../../../{precious.relative_to('/')}" if way == "dots" else "",
        "link": "staged/link/a.txt",
        "the folder itself": "staged",
        "a link in a snapshot": "staged/planted",
    }[way]
    record = {
        "artifact": records.Artifact(staged),
        "drawing": records.Drawing("episodes", "figures", staged),
        "model": records.Model(1, "key", staged, "model"),
    }[kind]
    run.journal.append(record)
    run.log_text("fine", "fine.txt")
    run.end()
    report = run.flush(60)

    assert report.complete
    assert precious.read_text() == "mine"
    paths = {entry.path for entry in client.list_artifacts(run.run_id)}
    assert "fine.txt" in paths
    assert not paths & {"a.txt", "b.txt", "staged", "link", "planted"}


def test_a_checkpoint_is_claimed_in_its_own_folder_only(tmp_path, precious) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.staged / "h").mkdir(parents=True)
    (folder.staged / "h.sending").symlink_to(precious.parent)
    for staged in ("staged/h/a.txt", "staged/x"):
        with pytest.raises(OutsideError):
            _take(staged, records.Artifact(staged, checkpoint=True), folder)

    assert folder.staged.is_dir()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:/x", "a//b", "", ".", "a/\0b", "x" * 300])
def test_a_name_that_leads_out_of_a_folder_has_no_path_in_it(tmp_path, name) -> None:
    with pytest.raises(OutsideError):
        inside(tmp_path, name)


def test_nothing_outside_the_border_is_deleted_and_links_are_not_followed(tmp_path, precious) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(precious.parent)
    with pytest.raises(OutsideError):
        delete(precious, within=root)
    with pytest.raises(OutsideError):
        delete(root / "link" / "a.txt", within=root)
    delete(root / "link", within=root)

    assert precious.read_text() == "mine"
    assert not list(root.iterdir())


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
