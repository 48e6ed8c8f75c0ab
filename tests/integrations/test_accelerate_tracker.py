"""Loops of accelerate: by name, with settings, in two processes, and after an exception."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from faults.exactness import stored_runs
from processes import free_port, run_script
from tracking_callbacks import MLflowTracker

LOOP = """
    import os, sys
    import numpy as np, torch
    from accelerate import Accelerator
    import tracking_callbacks.integrations.accelerate

    accelerator = Accelerator(cpu=True, log_with="tracking_callbacks")
    accelerator.init_trackers(sys.argv[1], config={"learning_rate": 0.1, "model": {"layers": 2}, "api_key": "s3cret"})
    model = torch.nn.Linear(2, 1)
    # The model is not: gloo aborts one in twenty processes that have reduced gradients, without any tracking too.
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(5):
        loss = model(torch.ones(4, 2)).pow(2).mean()
        accelerator.backward(loss)
        optimizer.step()
        accelerator.log({"loss": loss, "rank": int(os.environ.get("RANK", 0)), "phase": f"epoch {step}"}, step=step)
        if step == int(os.environ.get("FAILS_AT", -1)):
            raise ArithmeticError("the loss exploded")
    if accelerator.is_main_process:
        tracker = accelerator.get_tracker("tracking_callbacks")
        tracker.log_images({"inputs": [np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)]}, step=4)
        tracker.log_table("answers", columns=["text", "label"], data=[["good", 1], ["bad", 0]], step=4)
    accelerator.end_training()
"""


@pytest.fixture
def experiment(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The experiment that the loops log to."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return f"accelerate-{uuid.uuid4().hex[:8]}"


def test_two_processes_of_a_loop_log_one_run_from_the_main_process(
    client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    (tmp_path / "loop.py").write_text(textwrap.dedent(LOOP))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*command, "loop.py", experiment], cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False
    )

    assert done.returncode == 0, done.stderr
    (run,) = stored_runs(client, experiment).values()
    history = client.get_metric_history(run.info.run_id, "loss")
    assert run.info.status == "FINISHED"
    assert [point.step for point in history] == list(range(5))
    assert history[0].value > history[-1].value
    assert run.data.metrics["rank"] == 0
    assert (run.data.params["learning_rate"], run.data.params["model.layers"]) == ("0.1", "2")
    assert (run.data.tags["framework"], run.data.tags["phase"]) == ("accelerate", "epoch 4")
    config = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config/config.json"))
    assert config["model"] == {"layers": 2}
    assert "s3cret" not in json.dumps(config) + str(run.data.params)
    image = mlflow.artifacts.load_image(f"{run.info.artifact_uri}/images/inputs/000000004.png")
    assert image.size == (16, 8)
    table = client.load_table(run.info.experiment_id, "tables/answers/000000004.json", [run.info.run_id])
    assert table.to_dict("list") == {"text": ["good", "bad"], "label": [1, 0]}


def test_a_loop_that_raises_leaves_a_failed_run(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    code = textwrap.dedent(LOOP).replace("sys.argv[1]", repr(experiment))
    done = run_script(code, cwd=tmp_path, env={"FAILS_AT": "2"})

    assert "ArithmeticError: the loss exploded" in done.stderr
    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == "FAILED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 3
    assert "the loss exploded" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/error.txt")


def test_a_tracker_object_brings_its_settings(tracker: MLflowTracker, client: MlflowClient) -> None:
    from accelerate import Accelerator

    from tracking_callbacks.integrations.accelerate import AccelerateTracker

    ours = AccelerateTracker(tracker=tracker, run_name="with settings", tags={"team": "nlp"})
    accelerator = Accelerator(cpu=True, log_with=ours)
    ours.log({"loss": 1.0})  # too early: training goes on without it
    accelerator.init_trackers("not used")
    for loss in (0.3, 0.2):
        accelerator.log({"loss": loss})
    run = accelerator.get_tracker("tracking_callbacks", unwrap=True)
    try:
        raise ArithmeticError("diverged")
    except ArithmeticError:
        accelerator.end_training()
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    assert (stored.info.run_name, stored.data.tags["team"]) == ("with settings", "nlp")
    assert stored.info.status == "FAILED"
    history = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.3), (2, 0.2)]
