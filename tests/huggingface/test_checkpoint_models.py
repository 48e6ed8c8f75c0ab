"""``log_checkpoints="models"``: each checkpoint is a logged model with its own figures; old ones go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from transformers import Trainer

from faults.proxy import Fault, running_proxy
from huggingface.reading import finished_run
from tracking_callbacks import ConfigError, Delivery, MLflowTracker, Run
from tracking_callbacks.huggingface import MLflowTrainerCallback

EVERY_TWO_STEPS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


def models_of(client: MlflowClient, run: Run) -> dict[str, LoggedModel]:
    experiment = client.get_run(run.run_id).info.experiment_id
    return {
        model.name: model
        for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run.run_id}'")
    }


def test_each_checkpoint_is_a_model_with_its_step_its_figures_and_their_data(
    tracker: MLflowTracker, client: MlflowClient, server: Any, make_trainer: Callable[..., Trainer], full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_checkpoints="models")
    trainer = make_trainer(full_model, callback, **EVERY_TWO_STEPS)
    trainer.train()
    run = finished_run(callback)
    stored = client.get_run(run.run_id)
    models = models_of(client, run)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    (used,) = {one.dataset.digest for one in stored.inputs.dataset_inputs if one.tags[0].value == "evaluation"}

    assert set(models) == {"checkpoint-2", "checkpoint-4", "checkpoint-6", "model"}
    for step in (2, 4, 6):
        of_loss = [one for one in models[f"checkpoint-{step}"].metrics if one.key == "eval/loss"]
        assert [(one.step, one.value, one.dataset_digest) for one in of_loss] == [(step, losses[step], used)]
    assert {output.step for output in stored.outputs.model_outputs} == {2, 4, 6}
    mlflow.set_tracking_uri(server.uri)
    try:
        assert mlflow.pyfunc.load_model(f"models:/{models['checkpoint-2'].model_id}").predict(["good film"]) is not None
    finally:
        mlflow.set_tracking_uri(None)


def test_as_many_stay_as_the_trainer_keeps_and_the_best_one(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: Callable[..., Trainer], full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False, log_checkpoints="models")
    trainer = make_trainer(
        full_model, callback, max_steps=10, save_total_limit=2, metric_for_best_model="eval_runtime_of_nothing",
        load_best_model_at_end=False, **EVERY_TWO_STEPS,
    )  # fmt: skip
    trainer.compute_metrics = _best_at_step_four(trainer)
    trainer.train()

    assert trainer.state.best_global_step == 4
    assert set(models_of(client, finished_run(callback))) == {"checkpoint-4", "checkpoint-10"}


def test_checkpoints_that_were_replaced_while_the_store_was_away_never_reach_it(
    client: MlflowClient, server: Any, make_trainer: Callable[..., Trainer], full_model: Any, tmp_path: Path
) -> None:
    with running_proxy(server.uri) as proxy:
        tracker = MLflowTracker(
            proxy.uri, tmp_path.name, delivery=Delivery(journal_root=tmp_path / "journal", wait_at_end=0)
        )
        callback = MLflowTrainerCallback(tracker, log_model=False, log_checkpoints="models")
        proxy.fault(Fault("answer", statuses=(503,)))
        make_trainer(full_model, callback, save_total_limit=1, **EVERY_TWO_STEPS).train()
        staged = list((tmp_path / "journal").rglob("MLmodel"))
        proxy.fault()
        run = finished_run(callback)

        assert len(staged) == 1
        assert set(models_of(client, run)) == {"checkpoint-6"}
        assert not run.report().rejected


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="log_checkpoints: expected True, False or 'models', got 'model'"):
        MLflowTrainerCallback(log_checkpoints="model")  # type: ignore[arg-type]


def _best_at_step_four(trainer: Trainer) -> Callable[[Any], dict[str, float]]:
    return lambda _: {"runtime_of_nothing": 1.0 if trainer.state.global_step == 4 else 0.0}
