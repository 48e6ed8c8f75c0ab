"""Exits in a notebook kernel, under pytest-xdist and with a pending flush (row 18 of the fault matrix)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import uuid

import psutil
import pytest

from faults.exactness import stored_runs
from processes import delivery_processes, free_port, run_script, wait_for

LOG = """
    from tracking_callbacks import Delivery, MLflowTracker
    run = MLflowTracker(delivery=Delivery(flush_timeout=30)).start_run()
    for step in range(200):
        run.log_metrics({"loss": 1 / (step + 1)}, step=step)
"""


@pytest.fixture
def experiment(server, monkeypatch) -> str:
    """The experiment that the processes started by a test log to."""
    name = f"exit-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    return name


def check_points(client, run) -> None:
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(200)]


def zombies() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize("end", ["run.end()", "run.end(); run.flush(0)", "pass"])
def test_an_exit_waits_for_a_pending_flush_and_leaves_no_process(end, client, experiment, tmp_path) -> None:
    before = zombies()
    done = run_script(f"{textwrap.dedent(LOG)}\n{end}", cwd=tmp_path, timeout=60)

    assert done.returncode == 0, done.stderr
    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == ("KILLED" if end == "pass" else "FINISHED")
    check_points(client, run)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process ends")
    assert zombies() <= before


def test_an_exit_without_a_server_takes_the_flush_timeout_and_no_longer(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    code = textwrap.dedent(LOG).replace("flush_timeout=30", "flush_timeout=1, grace=1")
    code += "run.end()\nimport time\nprint(time.monotonic(), flush=True)\n"
    done = run_script(code, cwd=tmp_path, timeout=60)

    assert time.monotonic() - float(done.stdout) < 4.0
    assert "200 records not delivered after 1 s" in done.stderr
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process ends with its grace")


@pytest.mark.parametrize(
    ("now", "end", "status"),
    [(False, "", "KILLED"), (True, "", "KILLED"), (True, "run.end()", "FINISHED")],
    ids=["restarted", "killed", "killed after the run's end"],
)
def test_a_restarted_notebook_kernel_leaves_a_correct_status_and_no_process(
    now, end, status, client, experiment, tmp_path
) -> None:
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager, notebook = manager_module.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        answer = notebook.execute_interactive(textwrap.dedent(LOG) + end, timeout=60, allow_stdin=False)
        assert answer["content"]["status"] == "ok", answer
        manager.restart_kernel(now=now)
        notebook.wait_for_ready(timeout=60)
        answer = notebook.execute_interactive("1 + 1", timeout=60, allow_stdin=False)
        assert answer["content"]["status"] == "ok", answer
    finally:
        notebook.stop_channels()
        manager.shutdown_kernel(now=True)
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process ends")

    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == status
    assert run.data.tags["mlflow.source.type"] == "NOTEBOOK"
    check_points(client, run)


def test_an_error_in_a_notebook_cell_fails_the_run(client, experiment, tmp_path) -> None:
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager, notebook = manager_module.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        code = textwrap.dedent(LOG) + "raise RuntimeError('diverged')\n"
        answer = notebook.execute_interactive(code, timeout=60, allow_stdin=False, output_hook=lambda message: None)
        assert answer["content"]["status"] == "error", answer
    finally:
        notebook.stop_channels()
        manager.shutdown_kernel()
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process ends")

    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == "FAILED"
    assert run.data.tags["tracking_callbacks.error"] == "RuntimeError: diverged"
    check_points(client, run)


def test_under_pytest_xdist_every_worker_delivers_its_runs_and_exits(client, experiment, tmp_path) -> None:
    pytest.importorskip("xdist")
    body = textwrap.indent(textwrap.dedent(LOG), "    ") + "    run.end()\n"
    code = f"import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_logging(n):\n{body}"
    (tmp_path / "test_logging.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "test_logging.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery processes end")
    runs = stored_runs(client, experiment)
    assert [run.info.status for run in runs.values()] == ["FINISHED"] * 4
    for run in runs.values():
        check_points(client, run)


def test_a_delivery_process_that_dies_just_before_the_exit_is_replaced_during_it(client, experiment, tmp_path) -> None:
    """From Python 3.12 on, no thread starts while the interpreter exits."""
    start = "MLflowTracker(delivery=Delivery(flush_timeout=30)).start_run()\n"
    held = "import psutil\n(delivery,) = psutil.Process().children()\ndelivery.suspend()\n"
    code = textwrap.dedent(LOG).replace(start, start + held) + "run.end()\ndelivery.kill()\ndelivery.wait()\n"
    done = run_script(code, cwd=tmp_path, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = stored_runs(client, experiment).values()
    check_points(client, run)
    wait_for(lambda: not delivery_processes(tmp_path), "the delivery process ends")
