"""A journal root that another user owns or can write to is not used."""

from __future__ import annotations

import tempfile

from tracking_callbacks import Delivery, MLflowTracker


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
