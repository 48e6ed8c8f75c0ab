"""Our callback by name, in ``report_to`` and by a switch in the environment, for programs that cannot be changed."""

from __future__ import annotations

import textwrap
import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from huggingface.conftest import TrainerFactory
from processes import run_script
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

SWITCH = Path(__file__).parents[2] / "src/tracking_callbacks_switch.pth"
PROGRAM = """
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    rows = [{"input_ids": [1, 2, 3], "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments("out", max_steps=3, logging_steps=1, report_to=["REPORT_TO"], use_cpu=True)
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows)
    trainer.train()
    print([type(callback).__name__ for callback in trainer.callback_handler.callbacks])
"""


def ours(trainer: Any) -> list[Any]:
    return [one for one in trainer.callback_handler.callbacks if isinstance(one, MLflowTrainerCallback)]


def runs_of(client: MlflowClient, name: str) -> list[Any]:
    experiment = client.get_experiment_by_name(name)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_report_to_by_name_gives_a_full_run(
    server: Any,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name = f"report-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "journal"))
    trainer = make_trainer(full_model, report_to="tracking_callbacks")
    trainer.train()
    (callback,) = ours(trainer)
    assert callback.run.flush().complete

    (run,) = runs_of(client, name)
    assert run.info.status == "FINISHED"
    assert run.data.params["num_train_epochs"]
    assert "train/loss" in run.data.metrics
    assert run.outputs.model_outputs


def test_of_a_named_and_a_given_callback_the_given_one_stays(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any
) -> None:
    given, later = MLflowTrainerCallback(tracker), MLflowTrainerCallback(tracker)
    trainer = make_trainer(full_model, given, report_to="tracking_callbacks")
    trainer.add_callback(MLflowTrainerCallback)
    assert ours(trainer) == [given]

    named = make_trainer(full_model, report_to=["tracking_callbacks", "mlflow"])
    assert len(ours(named)) == 1
    named.add_callback(later)
    assert ours(named) == [later]
    assert not any(type(one).__name__ == "MLflowCallback" for one in named.callback_handler.callbacks)


@pytest.mark.parametrize(("switch", "report_to"), [("true", "mlflow"), ("false", "none")])
def test_the_switch_tracks_a_program_that_does_not_know_of_us(
    switch: str, report_to: str, server: Any, client: MlflowClient, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / SWITCH.name).write_text(SWITCH.read_text())  # as pip installs it
    (tmp_path / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})")
    name = f"switch-{uuid.uuid4().hex[:8]}"
    (tmp_path / "tracking.yaml").write_text(f"experiment_name: {name}\ndelivery: {{journal_root: {tmp_path}/journal}}")
    env = {
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2] / 'src'}",
        "MLFLOW_TRACKING_URI": server.uri,
        "TRACKING_CALLBACKS_CONFIG": str(tmp_path / "tracking.yaml"),
        "TRACKING_CALLBACKS_TRAINER": switch,
    }
    program = textwrap.dedent(PROGRAM).replace("REPORT_TO", report_to)
    done = run_script(program, cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stderr
    held = done.stdout.splitlines()[-1]
    assert "'MLflowCallback'" not in held
    if switch == "true":
        (run,) = runs_of(client, name)
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
        assert held.count("MLflowTrainerCallback") == 1
    else:
        assert runs_of(client, name) == []
        assert "MLflowTrainerCallback" not in held
