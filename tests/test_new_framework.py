"""docs/new-framework.md: its toy framework trains, and its callback makes a complete run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from processes import artifacts
from tracking_callbacks import MLflowTracker

PAGE = Path(__file__).parents[1] / "docs" / "new-framework.md"
BLOCK = re.compile(r"```python\n# (?P<file>\w+\.py)\n(?P<code>.*?)```", re.DOTALL)
POINTS = [(1.0, 2.0), (2.0, 4.0), (-1.0, -2.0)]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The modules that the page shows, by their names."""
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        (tmp_path / block["file"]).write_text(block["code"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: __import__(name)
    for name in ("tinytrain", "tinytrain_callback"):
        sys.modules.pop(name, None)


def test_the_page_s_callback_is_short() -> None:
    (code,) = (block["code"] for block in BLOCK.finditer(PAGE.read_text()) if block["file"] == "tinytrain_callback.py")

    assert len(code.splitlines()) <= 150


def test_the_page_s_callback_makes_a_complete_run(toy, tracker, client, server, tmp_path) -> None:
    import mlflow

    name = f"line-{tmp_path.name}"
    callback = toy("tinytrain_callback").MLflowTinytrainCallback(
        tracker, run_name="toy", registered_model_name=name, aliases=["champion"]
    )
    trainer = toy("tinytrain").Trainer(POINTS, callbacks=[callback])
    trainer.train()
    trainer.evaluate(POINTS)
    assert callback.run.flush().complete

    run = client.get_run(callback.run.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toy")
    assert {"learning_rate": "0.1", "steps": "50"}.items() <= run.data.params.items()
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 50
    assert run.data.metrics["eval/loss"] == pytest.approx(0.0, abs=1e-6)
    assert (run.data.tags["framework"], run.data.tags["framework_version"]) == ("tinytrain", "1.0")
    assert {"config/tinytrain.json", "figures/learning_curves.png"} <= set(artifacts(client, run.info.run_id))
    assert len(run.inputs.dataset_inputs) == 2
    mlflow.set_tracking_uri(server.uri)
    try:
        assert mlflow.pyfunc.load_model(f"models:/{name}@champion").predict([3.0]) == pytest.approx([6.0])
    finally:
        mlflow.set_tracking_uri(None)


def test_its_training_run_that_fails_is_not_stopped_by_tracking_and_ends_as_failed(toy, tracker, client) -> None:
    callback = toy("tinytrain_callback").MLflowTinytrainCallback(tracker, log_model=False)
    failing = toy("tinytrain").Trainer([(1.0, "no number")], callbacks=[callback])
    with pytest.raises(TypeError):
        failing.train()
    failed = callback.run
    toy("tinytrain").Trainer(POINTS, callbacks=[callback]).train()
    assert failed.flush().complete
    assert callback.run.flush().complete

    assert client.get_run(failed.run_id).info.status == "FAILED"
    assert client.get_run(callback.run.run_id).info.status == "FINISHED"


def test_it_records_params_and_metrics_alone_where_the_tracker_says_so(toy, tracker, client) -> None:
    settings = tracker.settings
    bare = MLflowTracker(settings.tracking_uri, settings.experiment_name, record=False, delivery=settings.delivery)
    callback = toy("tinytrain_callback").MLflowTinytrainCallback(bare)
    toy("tinytrain").Trainer(POINTS, steps=3, callbacks=[callback]).train()
    assert callback.run.flush().complete

    run = client.get_run(callback.run.run_id)
    assert run.data.metrics.keys() == {"train/loss"}
    assert run.data.params.keys() == {"learning_rate", "steps"}
    assert not artifacts(client, run.info.run_id)
    assert not run.inputs.dataset_inputs
    assert not run.outputs or not run.outputs.model_outputs
    assert "framework" not in run.data.tags
