"""A journal root that another user owns or can write to is not used."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import uuid

import pytest

from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._journal.layout import JournalRoot

OTHER_USER = 65534


def test_a_root_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o775)
    run = MLflowTracker("http://127.0.0.1:9", delivery=Delivery(journal_root=root, offline=True)).start_run()
    run.end()

    assert run.journal.root.path.parent == tmp_path
    assert not list(root.iterdir())
    assert "other users can write to it (mode 775)" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can give a folder away")
def test_a_root_of_another_user_is_not_used_and_neither_is_a_fallback_of_another_user(
    tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    roots = [tmp_path / "theirs", tmp_path / f"tracking_callbacks-{os.getuid()}"]
    for root in roots:
        root.mkdir(mode=0o700)
        os.chown(root, OTHER_USER, -1)
    run = MLflowTracker("http://127.0.0.1:9", delivery=Delivery(journal_root=roots[0], offline=True)).start_run()
    run.end()

    assert run.journal.root.path not in roots
    assert run.journal.root.path.stat().st_mode & 0o777 == 0o700
    assert not any(list(root.iterdir()) for root in roots)
    assert caplog.text.count(f"it belongs to user {OTHER_USER}") == 2


def test_a_root_stays_usable_while_delivery_removes_folders_of_runs(tmp_path) -> None:
    root, stop = JournalRoot(tmp_path / "root"), threading.Event()
    root.prepare()

    def come_and_go() -> None:
        folders = [root.path / uuid.uuid4().hex for _ in range(50)]
        while not stop.is_set():
            for folder in folders:
                folder.mkdir()
            for folder in folders:
                folder.rmdir()

    delivery = threading.Thread(target=come_and_go)
    delivery.start()
    try:
        for _ in range(300):
            root.prepare()
    finally:
        stop.set()
        delivery.join()


@pytest.mark.parametrize("spoiled", ["root", "run"])
@pytest.mark.parametrize("command", ["status", "sync"])
def test_the_commands_refuse_a_root_or_run_that_others_can_write_to(tmp_path, spoiled, command) -> None:
    root = tmp_path / "root"
    with MLflowTracker("http://127.0.0.1:9", delivery=Delivery(journal_root=root, offline=True)).start_run() as run:
        run.log_metrics({"loss": 1.0}, step=1)
    folder = root if spoiled == "root" else root / run.run_key
    folder.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", command, str(root)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert f"{folder} is not used: other users can write to it (mode 777)" in done.stderr
    assert not (root / "delivery.log").exists()
