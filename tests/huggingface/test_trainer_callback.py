from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from peft import PeftModel
from transformers import BertForSequenceClassification, Trainer, TrainerCallback
from transformers.integrations import MLflowCallback

from huggingface.reading import artifacts, finished_run, points, runs_of
from tracking_callbacks import ConfigError, Delivery, InvalidNameError, MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]


def test_one_run_holds_training_evaluation_prediction_and_model(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, lora_model: PeftModel, tmp_path: Path
) -> None:
    name = f"tiny-{tmp_path.name}"
    callback = MLflowTrainerCallback(
        tracker, run_name="whole", tags={"team": "blue"}, registered_model_name=name, aliases=["champion"]
    )
    trainer = make_trainer(lora_model, callback, eval_strategy="steps", eval_steps=3)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    predicted = trainer.predict(trainer.eval_dataset)
    run = finished_run(callback)

    stored = client.get_run(run.run_id)
    history = trainer.state.log_history
    assert len(runs_of(client, tracker)) == 1
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "whole")
    assert stored.data.tags.items() >= {"team": "blue", "framework": "transformers", "model_type": "bert"}.items()
    assert stored.data.params["lora.r"] == "4"
    assert stored.data.params["learning_rate"] == "0.01"
    # training resets the state and its history, and one evaluation came before it
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    assert points(client, run, "train/loss") == [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    assert points(client, run, "eval/loss")[1:] == evaluated
    assert [step for step, _ in points(client, run, "eval/accuracy")] == [0, 3, 6, 6]
    assert points(client, run, "test/loss") == [(6, predicted.metrics["test_loss"])]
    assert points(client, run, "train/mean_loss") == [(6, pytest.approx(history[-2]["train_loss"]))]
    assert {key.split("/")[0] for key in stored.data.metrics} == {"train", "eval", "test"}
    version = client.get_model_version_by_alias(name, "champion")
    assert (str(version.version), version.run_id) == ("1", run.run_id)
    assert version.tags.items() >= {"team": "blue", "form": "merged"}.items()
    assert "the base model is only the local path" in version.tags["form_notice"]
    assert "tracking_callbacks.model_error" not in stored.data.tags
    assert artifacts(client, run) >= {
        "config/training_args.json",
        "config/model_config.json",
        "config/peft_config.json",
        "evaluation/eval/step-3/confusion_matrix.json",
        "evaluation/eval/step-6/classification_report.txt",
        "evaluation/test/step-6/confusion_matrix.json",
    }


def test_saving_the_model_does_not_disturb_training(
    tracker: MLflowTracker, make_trainer: TrainerFactory, lora_model: PeftModel, tmp_path: Path
) -> None:
    class BeforeAndAfter(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            self.weights = {name: weight.clone() for name, weight in kwargs["model"].state_dict().items()}

    callback, witness = MLflowTrainerCallback(tracker, log_model="merged"), BeforeAndAfter()
    trainer = make_trainer(lora_model, callback)
    trainer.add_callback(witness)  # runs after ours: it sees the weights at the summary, before the model is saved
    trainer.train()

    assert all(torch.equal(weight, witness.weights[name]) for name, weight in lora_model.state_dict().items())
    assert trainer.train().global_step == 6
    assert not list((tmp_path / "output").glob(".mlmodel-*"))


def test_training_again_starts_a_new_run(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback)
    trainer.train()
    first = finished_run(callback).run_id
    trainer.train()
    second = finished_run(callback).run_id

    assert first != second
    assert {run.info.run_id: run.info.status for run in runs_of(client, tracker)} == {
        first: "FINISHED",
        second: "FINISHED",
    }


@pytest.mark.parametrize("restored", [False, True])
def test_a_resumed_checkpoint_continues_its_run(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    tmp_path: Path,
    restored: bool,
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": restored}
    first = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, first, **saving).train()
    run_id = finished_run(first).run_id
    checkpoint = tmp_path / "output" / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]

    second = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, second, max_steps=8, **saving).train(resume_from_checkpoint=str(checkpoint))
    run = finished_run(second)

    assert set(state["tracking_callbacks"]) == {"run_key", "tracking_uri", "experiment_name"}
    assert run.run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert max(step for step, _ in points(client, run, "train/loss")) == 8


def test_a_checkpoint_from_another_store_starts_a_new_run(
    tracker: MLflowTracker,
    make_trainer: TrainerFactory,
    full_model: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    first = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, first, **saving).train()
    elsewhere = MLflowTracker(
        tracker.settings.tracking_uri, "elsewhere", delivery=Delivery(journal_root=tracker.settings.journal_root)
    )

    second = MLflowTrainerCallback(elsewhere, log_model=False)
    make_trainer(full_model, second, **saving).train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-3"))

    assert finished_run(second).run_id != finished_run(first).run_id
    assert "a new run begins in 'elsewhere'" in caplog.text


def test_a_users_own_run_is_joined_and_not_ended(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    with tracker.start_run("mine") as run:
        make_trainer(full_model, callback).train()
        ended = run.ended
    assert run.flush(timeout=60).complete

    assert callback.run is run
    assert not ended
    assert len(runs_of(client, tracker)) == 1
    assert points(client, run, "train/loss")


def test_tensors_are_metrics_and_arrays_are_skipped_with_one_warning(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback)
    trainer.train()
    for _ in range(2):
        trainer.log({"tensor": torch.tensor(0.5), "numpy": np.float32(0.25), "array": np.ones(3), "text": "no"})
    run = finished_run(callback)

    metrics = client.get_run(run.run_id).data.metrics
    assert (metrics["train/tensor"], metrics["train/numpy"]) == (0.5, 0.25)
    assert "train/array" not in metrics
    assert sum("'train/array'" in record.message for record in caplog.records) == 1


def test_a_model_that_no_flavor_can_hold_keeps_its_weights_and_does_not_fail_the_training(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: BertForSequenceClassification,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unheard(BertForSequenceClassification):
        """No pipeline of transformers knows this class, and it cannot be imported."""

    full_model.__class__ = Unheard
    full_model.lock = threading.Lock()  # cannot be pickled
    callback = MLflowTrainerCallback(tracker)
    make_trainer(full_model, callback).train()
    run = finished_run(callback)
    stored = client.get_run(run.run_id)

    assert stored.info.status == "FINISHED"
    assert "a Unheard cannot be pickled" in stored.data.tags["tracking_callbacks.model_error"]
    assert stored.data.metrics["train/mean_loss"] > 0
    assert {"model_files/config.json", "model_files/model.safetensors"} <= set(artifacts(client, run, "model_files"))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("the class Unheard cannot be imported" in message for message in said)
    assert any("its weights are in the artifacts model_files" in message for message in said)


def test_checkpoints_are_logged_even_if_the_trainer_deletes_them(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any, tmp_path: Path
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False, log_checkpoints=True)
    trainer = make_trainer(full_model, callback, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer.train()
    found = artifacts(client, finished_run(callback), "checkpoints")

    assert sorted(os.listdir(tmp_path / "output")) == ["checkpoint-6"]
    assert {path.split("/")[1] for path in found} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert "checkpoints/checkpoint-2/model.safetensors" in found


def test_the_registered_model_is_the_best_one(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any, tmp_path: Path
) -> None:
    name = f"best-{tmp_path.name}"
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, aliases=["champion"])
    trainer = make_trainer(
        full_model,
        callback,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first evaluation is the one with the greatest loss
    )
    trainer.train()
    run = finished_run(callback)
    version = client.get_model_version_by_alias(name, "champion")

    assert trainer.state.best_global_step < 6
    assert version.run_id == run.run_id
    assert [model.step for model in client.get_run(run.run_id).outputs.model_outputs] == [
        trainer.state.best_global_step
    ]


def test_ending_the_same_training_twice_registers_only_one_version(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any, tmp_path: Path
) -> None:
    name = f"once-{tmp_path.name}"
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, aliases=["champion"])
    trainer = make_trainer(full_model, callback)
    trainer.train()
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    run = finished_run(callback)

    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_retry_with_a_smaller_batch_is_the_same_run(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    class OutOfMemoryOnce(TrainerCallback):
        failed = False

        def on_step_end(self, args, state, control, **kwargs):
            if not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")

    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback, auto_find_batch_size=True)
    trainer.add_callback(OutOfMemoryOnce())
    trainer.train()
    run = finished_run(callback)

    stored = client.get_run(run.run_id)
    assert len(runs_of(client, tracker)) == 1
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["tracking_callbacks.attempts"] == "2"
    assert "tracking_callbacks.error" not in stored.data.tags


def test_an_exception_fails_the_run_and_training_again_starts_a_new_one(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise ZeroDivisionError("broken at step 3")

    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback)
    trainer.add_callback(broken := Broken())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    failed = callback.run
    assert failed.flush(timeout=60).complete
    at_once = client.get_run(failed.run_id)
    trainer.remove_callback(broken)
    trainer.train()
    finished_run(callback)

    assert (at_once.info.status, at_once.data.tags["tracking_callbacks.error"]) == (
        *("FAILED", "ZeroDivisionError: broken at step 3"),
    )
    assert client.get_run(failed.run_id).info.status == "FAILED"
    assert client.get_run(callback.run.run_id).info.status == "FINISHED"
    assert failed is not callback.run


def test_only_the_main_process_writes(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any, tmp_path: Path
) -> None:
    callback = MLflowTrainerCallback(tracker)
    trainer = make_trainer(full_model, callback)
    trainer.state.is_world_process_zero = False
    logs = {"loss": 1.0}
    callback.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=full_model)
    callback.on_predict(trainer.args, trainer.state, trainer.control, metrics=logs)
    callback.on_train_end(trainer.args, trainer.state, trainer.control, model=full_model)

    assert callback.run is None


def test_a_log_model_choice_that_does_not_suit_the_model_raises_before_the_first_step(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model="adapter")
    trainer = make_trainer(full_model, callback)

    with pytest.raises(ConfigError, match="needs a PEFT model"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert callback.run is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_model": "whole"}, "expected 'auto', 'adapter', 'merged', 'full' or False, got 'whole'"),
        ({"registered_model_name": "m", "aliases": ["a b"]}, "'a b' is not a model alias"),
        ({"registered_model_name": "m", "aliases": ["latest"]}, "reserved"),
        ({"aliases": ["champion"]}, "need a registered_model_name"),
        ({"registered_model_name": "a/b"}, "registered_model_name"),
        (
            {"tracker": "team.yaml"},
            r"tracker: expected an MLflowTracker or None, got 'team.yaml'; .*\(config='team.yaml'",
        ),
        ({"tracker": MLflowTracker}, "tracker: expected an MLflowTracker or None, got the class"),
    ],
)
def test_wrong_configuration_raises_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLflowTrainerCallback(**arguments)


@pytest.fixture
def mlflow_here(server, tracker: MLflowTracker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow with the store and experiment of the tracker, for callbacks that are not ours."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracker.settings.experiment_name)
    yield mlflow
    mlflow.end_run()


@pytest.mark.parametrize("named", ["report_to", "report_to, ours added", "added", "autolog before", "autolog after"])
def test_transformers_own_callback_is_taken_out_however_it_was_named(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    mlflow_here: Any,
    caplog: pytest.LogCaptureFixture,
    named: str,
) -> None:
    if named == "autolog before":
        mlflow_here.transformers.autolog()
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback, report_to="mlflow" if "report_to" in named else "none")
    if named == "report_to, ours added":
        trainer.remove_callback(callback)
        trainer.add_callback(MLflowCallback)
        trainer.add_callback(callback)
    if named == "added":
        trainer.add_callback(MLflowCallback())
    if named == "autolog after":
        mlflow_here.transformers.autolog()
    try:
        trainer.evaluate()
        trainer.train()
    finally:
        mlflow_here.transformers.autolog(disable=True)
    run = finished_run(callback)

    (only,) = runs_of(client, tracker)
    assert only.info.run_id == run.run_id
    assert {"train/loss", "eval/loss"} <= only.data.metrics.keys()
    assert not {"loss", "eval_loss"} & only.data.metrics.keys()
    told = sum("is taken out" in record.message for record in caplog.records)
    assert told == (2 if named == "report_to, ours added" else 1)


def test_folds_in_one_run_of_the_user_are_nested_runs(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callbacks = []
    with tracker.start_run("cross-validation") as outer:
        for _ in range(2):
            callbacks.append(MLflowTrainerCallback(tracker, log_model=False, run_name="fold"))
            trainer = make_trainer(full_model, callbacks[-1])
            trainer.evaluate()
            trainer.train()
    first, second = (finished_run(callback) for callback in callbacks)

    assert first is outer
    stored = client.get_run(second.run_id)
    assert (stored.info.status, stored.data.tags["mlflow.parentRunId"]) == ("FINISHED", outer.run_id)
    assert [point.step for point in client.get_metric_history(outer.run_id, "train/loss")] == [2, 4, 6]
    assert [point.step for point in client.get_metric_history(second.run_id, "train/loss")] == [2, 4, 6]


def test_a_bad_value_in_the_environment_is_raised_before_the_first_step(
    make_trainer: TrainerFactory, full_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    trainer = make_trainer(full_model, MLflowTrainerCallback(log_model=False))
    with pytest.raises(ConfigError, match="tracking_uri: expected a scheme"):
        trainer.train()

    assert trainer.state.global_step == 0


def test_a_configuration_that_cannot_be_read_costs_its_own_piece_only(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback)

    class Unreadable:
        """A model as some wrappers are: no configuration can be read, and it counts no parameters."""

        @property
        def config(self) -> Any:
            raise LookupError("no configuration")

    hook = callback.on_train_begin
    callback.on_train_begin = lambda args, state, control, **given: hook(
        args, state, control, **given | {"model": Unreadable()}
    )
    trainer.train()
    run = finished_run(callback)

    stored = client.get_run(run.run_id)
    assert float(stored.data.params["learning_rate"]) == 1e-2
    assert not [name for name in stored.data.params if name.startswith("model.")]
    assert {one.dataset.name for one in stored.inputs.dataset_inputs} == {"train"}
    assert stored.info.status == "FINISHED"


def test_a_tag_without_a_name_is_refused_at_construction() -> None:
    with pytest.raises(InvalidNameError):
        MLflowTrainerCallback(tags={"": "x"})


def test_the_environment_switches_the_callback_off(
    make_trainer: TrainerFactory, full_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "1")
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "journal"))
    trainer = make_trainer(full_model, MLflowTrainerCallback(registered_model_name="never"), save_strategy="epoch")
    trainer.train()
    trainer.evaluate()

    assert trainer.state.global_step == 6
    assert not (tmp_path / "journal").exists()


def test_the_variable_of_transformers_callback_logs_every_checkpoint(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "TRUE")
    callback = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, callback, save_strategy="steps", save_steps=3).train()
    run = finished_run(callback)

    found = {entry.path for entry in client.list_artifacts(run.run_id, "checkpoints")}
    assert found == {"checkpoints/checkpoint-3", "checkpoints/checkpoint-6"}


def test_the_users_tags_come_first_in_the_overview(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, tags={"team": "desk", "zone": "eu"}, log_model=False)
    make_trainer(full_model, callback).train()
    shown = [key for key in client.get_run(finished_run(callback).run_id).data.tags if not key.startswith("mlflow.")]

    assert shown[:4] == ["team", "zone", "framework", "framework_version"]
