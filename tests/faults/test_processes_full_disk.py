"""No space, or no permission, for the journal (row 12 of the fault matrix)."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.exactness import stored_runs
from processes import delivery_processes, run_script, wait_for

# Logs until the disk is full, and goes on; `limit` fills the disk or removes it. Prints the report at the end.
TRAIN = """
    import json, os, resource, signal, sys
    from tracking_callbacks import Delivery, MLflowTracker
    run = MLflowTracker(delivery=Delivery(journal_root={root!r})).start_run()
    run.log_metrics({{"loss": -1.0}}, step=-1)
    {limit}
    for step in range(20_000):
        run.log_metrics({{"loss": float(step)}}, step=step)
    run.log_text("x" * 3_000_000, "large.txt")
    {free}
    run.log_metrics({{"loss": 0.5}}, step=20_000)
    run.end()
    report = run.flush(60)
    print(json.dumps([report.delivered, report.dropped, report.pending, report.complete]))
"""
LIMIT_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))"
FREE_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A small file system at `folder`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is refused: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def check_what_was_kept(server, client, folder: Path, root: Path, limit: str, free: str) -> None:
    """Log to a journal root that fills up; check that the store has what was written and that the rest is counted.

    Args:
        limit: Code that fills the disk or removes it.
        free: Code that restores it before the run ends; "pass" leaves it full.
    """
    experiment = f"full-{uuid.uuid4().hex[:8]}"
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    done = run_script(TRAIN.format(root=str(root), limit=limit, free=free), cwd=folder, env=env)

    assert done.returncode == 0, done.stderr
    delivered, dropped, pending, complete = json.loads(done.stdout)
    (run,) = stored_runs(client, experiment).values()
    points = client.get_metric_history(run.info.run_id, "loss")
    steps = [point.step for point in points]
    assert (delivered, dropped, pending, complete) == (len(points), 20_003 - len(points), 0, True)
    assert 1 < len(points) < 20_002
    assert len(set(steps)) == len(steps)
    assert all(point.value == point.step or point.step in (-1, 20_000) for point in points)
    assert (steps[-1] == 20_000) == (free != "pass")
    assert run.info.status == "FINISHED"
    assert done.stderr.count("cannot write to") == 1, done.stderr
    assert done.stderr.count(f"{dropped} entries could not be kept") == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("until", ["the end", "beyond the end"])
@pytest.mark.parametrize("limit", ["file size", "file system"])
def test_records_written_before_the_disk_was_full_are_delivered_and_the_rest_counted(
    limit, until, server, client, tmp_path
) -> None:
    if limit == "file size":
        free = FREE_FILES if until == "the end" else "pass"
        check_what_was_kept(server, client, tmp_path, tmp_path / "journal", LIMIT_FILES, free)
        return
    with tmpfs(tmp_path / "small", "600k") as small:
        grow = f"import subprocess; subprocess.run(['mount', '-o', 'remount,size=20m', {str(small)!r}], check=True)"
        check_what_was_kept(server, client, tmp_path, small / "journal", "pass", grow if until == "the end" else "pass")


@pytest.mark.parametrize("place", ["read-only file system", "below a file"])
def test_an_unwritable_journal_root_is_replaced_with_one_warning(place, server, client, tmp_path) -> None:
    experiment = f"elsewhere-{uuid.uuid4().hex[:8]}"
    (tmp_path / "temporary").mkdir()
    (tmp_path / "file").touch()
    env = {
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "TMPDIR": str(tmp_path / "temporary"),
    }
    with tmpfs(tmp_path / "small", "600k,ro") as small:
        root = small / "journal" if place == "read-only file system" else tmp_path / "file" / "journal"
        done = run_script(TRAIN.format(root=str(root), limit="pass", free="pass"), cwd=tmp_path, env=env)
    wait_for(lambda: not delivery_processes(tmp_path), "delivery finishes")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [20_003, 0, 0, True]
    assert done.stderr.count(f"the journal root {root} cannot be used") == 1
    (run,) = stored_runs(client, experiment).values()
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 20_002
