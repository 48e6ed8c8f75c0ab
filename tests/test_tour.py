"""The notebook of the tour, executed as a reader would."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"


def kill_processes_in(folder: Path) -> None:
    """Kill the server of a notebook that has failed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                process.kill()


@pytest.mark.timeout(300)
def test_the_tour_survives_its_outage_and_its_crash(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the notebook makes its folder there
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("TRACKING_CALLBACKS_JOURNAL", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its outputs"

    try:
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        kill_processes_in(tmp_path)

    printed = [
        "".join(output["text"] for output in cell.get("outputs", []) if output.get("name") == "stdout")
        for cell in notebook.cells
    ]
    outage, agent, crash, resumed, end = (
        next(text for text in printed if sign in text)
        for sign in ("DeliveryReport", "during the outage", "the power is gone", "steps 1 to", "Everything is")
    )
    assert "connection refused" in outage
    assert "pending=0, rejected=0, dropped=0, damaged=0, complete=True" in outage
    assert agent.startswith("FINISHED")
    assert not agent.startswith("FINISHED 0")
    assert "FAILED RuntimeError: the power is gone" in crash
    assert resumed.splitlines() == ["True FINISHED", "steps 1 to 48"]
    assert end.strip() == "Everything is delivered."
