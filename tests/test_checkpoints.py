"""Checkpoints that wait for delivery: which ones are dropped, which ones stay, and how the run reports it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults.proxy import Fault, running_proxy
from processes import artifacts, run_script, wait_for
from tracking_callbacks import ConfigError, Delivery, InputError, MLflowTracker
from tracking_callbacks._journal.checkpoints import WaitingCheckpoints, claim, secure
from tracking_callbacks._writing.snapshots import hold

DROPPED_TAG = "tracking_callbacks.dropped_checkpoints"


def write_checkpoint(folder: Path, step: int, size: int = 1000) -> Path:
    """A checkpoint of two files, `size` bytes together."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(size // 2))
    (checkpoint / "optimizer.pt").write_bytes(bytes(size - size // 2))
    return checkpoint


def staged_names(root: Path, run_key: str) -> list[str]:
    return sorted(path.name for path in (root / run_key / "staged").glob("[!.]*/*"))


def only_run(client, experiment: str):
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


OFFLINE = """
    from pathlib import Path
    from tracking_callbacks import Delivery, MLflowTracker
    delivery = Delivery(offline=True, max_checkpoint_bytes=2500)
    tracker = MLflowTracker({uri!r}, {experiment!r}, record=False, delivery=delivery)
    with tracker.start_run() as run:
        for step in range(5):
            checkpoint = Path(f"checkpoint-{{step}}")
            checkpoint.mkdir()
            for name in ("model.safetensors", "optimizer.pt"):
                (checkpoint / name).write_bytes(bytes(500))
            run.log_checkpoint(checkpoint)
        run.log_metrics({{"loss": 1.0}})
    print(run.run_key, run.report().dropped, run.report().pending)
"""


def test_the_oldest_checkpoints_are_dropped_and_the_run_says_so(server, client, tmp_path) -> None:
    done = run_script(OFFLINE.format(uri=server.uri, experiment=tmp_path.name), cwd=tmp_path)
    run_key, dropped, pending = done.stdout.split()
    staged = staged_names(tmp_path / ".tracking_callbacks", run_key)
    sync = [sys.executable, "-m", "tracking_callbacks.cli", "sync"]
    synced = subprocess.run(sync, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert staged == ["checkpoint-3", "checkpoint-4"]
    assert (dropped, pending) == ("3", "3")
    assert done.stderr.count("too many checkpoints wait for delivery") == 3
    assert (synced.returncode, synced.stdout.strip()) == (0, "Everything is delivered."), synced.stderr
    stored = only_run(client, tmp_path.name)
    assert (stored.info.status, stored.data.tags[DROPPED_TAG]) == ("FINISHED", "3")
    assert "tracking_callbacks.rejected" not in stored.data.tags
    assert artifacts(client, stored.info.run_id, "checkpoints") == [
        f"checkpoints/checkpoint-{step}/{file}" for step in (3, 4) for file in ("model.safetensors", "optimizer.pt")
    ]


FORKED = """
    import os
    from pathlib import Path
    from tracking_callbacks import Delivery, MLflowTracker
    Path("checkpoint").write_bytes(bytes(1000))
    tracker = MLflowTracker("http://127.0.0.1:9", record=False, delivery=Delivery(offline=True, max_checkpoint_bytes=0))
    with tracker.start_run() as run:
        run.log_checkpoint("checkpoint")
        if (child := os.fork()) == 0:
            run.log_checkpoint("checkpoint")
            os._exit(0)
        os.waitpid(child, 0)
    print(run.run_key, run.report().dropped)
"""


def test_a_forked_child_leaves_its_parents_checkpoints_alone(tmp_path) -> None:
    done = run_script(FORKED, cwd=tmp_path)
    run_key, dropped = done.stdout.split()

    assert dropped == "1"  # the child's
    assert staged_names(tmp_path / ".tracking_callbacks", run_key) == ["checkpoint"]


def test_the_latest_checkpoint_stays_however_large_and_so_do_other_artifacts(tmp_path) -> None:
    tracker = MLflowTracker(
        "http://127.0.0.1:9",
        record=False,
        delivery=Delivery(journal_root=tmp_path / "journal", offline=True, max_checkpoint_bytes=0),
    )
    with tracker.start_run() as run:
        run.log_artifacts(write_checkpoint(tmp_path, 1), "by-hand")
        run.log_checkpoint(write_checkpoint(tmp_path, 2))
        (tmp_path / "agent.zip").write_bytes(bytes(5000))
        run.log_checkpoint(tmp_path / "agent.zip")

    assert staged_names(tmp_path / "journal", run.run_key) == ["agent.zip", "model.safetensors", "optimizer.pt"]
    assert run.report().dropped == 1


def test_the_checkpoint_that_is_being_sent_arrives_whole(server, client, tmp_path) -> None:
    name = tmp_path.name
    with running_proxy(server.uri) as proxy:
        root = tmp_path / "journal"
        tracker = MLflowTracker(
            proxy.uri, name, record=False, delivery=Delivery(journal_root=root, max_checkpoint_bytes=1500)
        )
        with tracker.start_run() as run:
            assert run.run_id is not None
            proxy.fault(Fault("hang", paths=("optimizer.pt",)))
            run.log_checkpoint(write_checkpoint(tmp_path / "output", 0))
            wait_for(lambda: proxy.struck["hang"], "the first checkpoint is on its way")
            for step in range(1, 5):
                run.log_checkpoint(write_checkpoint(tmp_path / "output", step))
            waiting = staged_names(root, run.run_key)
            proxy.fault()
        report = run.flush(60)

    assert waiting == ["checkpoint-0", "checkpoint-4"]
    assert report.complete
    assert (report.dropped, report.rejected, report.pending) == (3, 0, 0)
    stored = only_run(client, name)
    assert (stored.info.status, stored.data.tags[DROPPED_TAG]) == ("FINISHED", "3")
    assert artifacts(client, stored.info.run_id, "checkpoints") == [
        f"checkpoints/checkpoint-{step}/{file}" for step in (0, 4) for file in ("model.safetensors", "optimizer.pt")
    ]


def test_by_default_checkpoints_take_half_of_the_free_disk_space(tmp_path) -> None:
    waiting = WaitingCheckpoints(None)
    snapshots = [write_checkpoint(tmp_path / f"{step}", step) for step in range(4)]
    for snapshot in snapshots:
        waiting.add(snapshot, 1000)
    claim(snapshots[1])

    assert waiting.make_room(1000, tmp_path) == 0
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert waiting.make_room(2 * free, tmp_path) == 3  # all except the claimed one
    assert [snapshot.exists() for snapshot in snapshots] == [False] * 4
    assert claim(snapshots[1]).is_dir()
    assert not claim(snapshots[0]).exists()


def test_delivered_checkpoints_take_no_space(tmp_path) -> None:
    waiting = WaitingCheckpoints(2500)
    first, second = (write_checkpoint(tmp_path / f"{step}", step) for step in range(2))
    waiting.add(first, 1000)
    waiting.add(second, 1000)
    for file in first.iterdir():
        file.unlink()
    first.rmdir()

    assert waiting.make_room(1000, tmp_path) == 0
    assert second.exists()


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    tracker = MLflowTracker(
        "http://127.0.0.1:9", record=False, delivery=Delivery(journal_root=tmp_path / "journal", offline=True)
    )
    with tracker.start_run() as run, pytest.raises(InputError, match=r"log_checkpoint: .* nothing at .*absent"):
        run.log_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("value", [-1, 1.5, True, "1 GB"])
def test_an_invalid_max_checkpoint_bytes_is_named(value) -> None:
    with pytest.raises(ConfigError, match="max_checkpoint_bytes: expected a number of bytes, 0 or more"):
        MLflowTracker(delivery=Delivery(max_checkpoint_bytes=value))


# -- large files, which are held by hard links

LARGE = 3_000_000


def large_checkpoint(folder: Path, content: bytes = b"a") -> Path:
    checkpoint = folder / "checkpoint-7"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "model.bin").write_bytes(content * LARGE)  # in place, if it is there
    (checkpoint / "state.json").write_text("{}")
    return checkpoint


def stored_bytes(client, run_id: str, folder: Path) -> set[bytes]:
    content = Path(client.download_artifacts(run_id, "checkpoints/checkpoint-7/model.bin", str(folder))).read_bytes()
    assert len(content) == LARGE
    return {content[:1], content[-1:]}


def test_a_large_file_is_not_copied_and_survives_its_deletion(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.fault(Fault("answer", statuses=(503,)))
        delivery = Delivery(journal_root=tmp_path / "journal")
        run = MLflowTracker(proxy.uri, tmp_path.name, record=False, delivery=delivery).start_run()
        checkpoint = large_checkpoint(tmp_path)
        run.log_checkpoint(checkpoint)
        (linked,) = (tmp_path / "journal" / run.run_key / "staged").glob("*/*/model.bin")
        assert linked.stat().st_ino == (checkpoint / "model.bin").stat().st_ino
        (small,) = (tmp_path / "journal" / run.run_key / "staged").glob("*/*/state.json")
        assert small.stat().st_ino != (checkpoint / "state.json").stat().st_ino
        shutil.rmtree(checkpoint)
        proxy.fault()
        run.end()

        assert run.flush().complete
    assert stored_bytes(client, run.run_id, tmp_path) == {b"a"}


def test_a_file_that_is_replaced_after_it_was_logged_arrives_as_it_was(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.fault(Fault("answer", statuses=(503,)))
        delivery = Delivery(journal_root=tmp_path / "journal")
        run = MLflowTracker(proxy.uri, tmp_path.name, record=False, delivery=delivery).start_run()
        checkpoint = large_checkpoint(tmp_path)
        run.log_checkpoint(checkpoint)
        (checkpoint / "new").write_bytes(b"b" * LARGE)
        os.replace(checkpoint / "new", checkpoint / "model.bin")
        proxy.fault()
        run.end()

        assert run.flush().complete
    assert stored_bytes(client, run.run_id, tmp_path) == {b"a"}


def test_a_file_that_is_written_into_before_it_is_sent_is_refused_and_the_next_one_is_copied(
    server, client, tmp_path
) -> None:
    with running_proxy(server.uri) as proxy:
        proxy.fault(Fault("answer", statuses=(503,)))
        delivery = Delivery(journal_root=tmp_path / "journal")
        run = MLflowTracker(proxy.uri, tmp_path.name, record=False, delivery=delivery).start_run()
        run.log_checkpoint(large_checkpoint(tmp_path))
        run.log_checkpoint(large_checkpoint(tmp_path, b"b"))
        large_checkpoint(tmp_path, b"c")
        proxy.fault()
        run.end()
        report = run.flush()

    assert (report.complete, report.rejected, report.delivered) == (True, 1, 1)
    assert stored_bytes(client, run.run_id, tmp_path) == {b"b"}
    told = Path(client.download_artifacts(run.run_id, "tracking_callbacks/rejected.jsonl", str(tmp_path))).read_text()
    assert "model.bin was overwritten after it was logged and before it was sent" in told


def test_a_file_that_is_written_into_while_it_is_sent_arrives_as_it_was(server, client, tmp_path) -> None:
    with running_proxy(server.uri) as proxy:
        delivery = Delivery(journal_root=tmp_path / "journal")
        run = MLflowTracker(proxy.uri, tmp_path.name, record=False, delivery=delivery).start_run()
        proxy.fault(Fault("hang", paths=("model.bin",)))
        run.log_checkpoint(large_checkpoint(tmp_path))
        wait_for(lambda: proxy.struck["hang"], "the checkpoint is on its way")
        large_checkpoint(tmp_path, b"b")
        proxy.fault()
        run.end()

        assert run.flush().complete
    assert stored_bytes(client, run.run_id, tmp_path) == {b"a"}


def test_what_cannot_be_linked_is_copied(tmp_path, monkeypatch) -> None:
    source, target = large_checkpoint(tmp_path), tmp_path / "held" / "checkpoint-7"

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)

    assert hold(source, target) == {}
    assert (target / "model.bin").read_bytes() == (source / "model.bin").read_bytes()
    assert (target / "model.bin").stat().st_nlink == 1


def test_a_copy_that_was_cut_off_is_not_sent_and_a_planted_link_is_not_followed(tmp_path) -> None:
    source, snapshot = large_checkpoint(tmp_path), tmp_path / "holder" / "checkpoint-7"
    held = hold(source, snapshot)
    (tmp_path / "bystander").write_text("mine")
    (snapshot / ".model.bin.copy").symlink_to(tmp_path / "bystander")
    secure(snapshot, held)

    assert (tmp_path / "bystander").read_text() == "mine"
    assert (snapshot / "model.bin").stat().st_nlink == 1
    (snapshot / ".model.bin.copy").write_text("half of it")
    secure(snapshot, held)
    assert sorted(path.name for path in snapshot.iterdir()) == ["model.bin", "state.json"]
