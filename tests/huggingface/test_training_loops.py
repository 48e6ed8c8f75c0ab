"""Every way in which the training loop can go gives one run, with every point once at its step."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from huggingface.reading import finished_run, points, runs_of
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]
LOGGED = {"loss": "train/loss", "learning_rate": "train/learning_rate", "train_loss": "train/mean_loss"}
EVALUATED = {"eval_loss": "eval/loss", "eval_accuracy": "eval/accuracy"}


@pytest.mark.parametrize(
    ("arguments", "logged", "evaluated"),
    [
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, [2, 4, 6], []),
        ({"max_steps": 5, "logging_first_step": True}, [1, 2, 4], []),
        (
            {"max_steps": -1, "num_train_epochs": 2, "logging_strategy": "epoch", "eval_strategy": "epoch"},
            [5, 10],
            [5, 10],
        ),
        ({"logging_strategy": "no", "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}, [], [0, 3, 6]),
        ({"max_steps": 5, "eval_strategy": "steps", "eval_steps": 0.4}, [2, 4], [2, 4, 5]),
    ],
    ids=["gradient accumulation", "max_steps", "epochs", "no logging", "ratio"],
)
def test_every_point_is_stored_once_at_its_step(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    arguments: dict[str, Any],
    logged: list[int],
    evaluated: list[int],
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback, **arguments)
    trainer.train()
    run = finished_run(callback)

    history = trainer.state.log_history
    for key, name in (LOGGED | EVALUATED).items():
        assert points(client, run, name) == [(entry["step"], entry[key]) for entry in history if key in entry], name
    assert [step for step, _ in points(client, run, "train/loss")] == logged
    assert [step for step, _ in points(client, run, "eval/loss")] == evaluated
    assert [step for step, _ in points(client, run, "train/mean_loss")] == [trainer.state.global_step]
    assert len(runs_of(client, tracker)) == 1
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_early_stopping_gives_a_finished_run(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(
        full_model,
        callback,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the loss falls: no evaluation is better than the first
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    run = finished_run(callback)

    assert trainer.state.global_step == 3
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [step for step, _ in points(client, run, "eval/loss")] == [1, 2, 3]


def test_the_checkpoint_of_a_retry_belongs_to_the_same_run(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, full_model: Any, tmp_path: Path
) -> None:
    class OutOfMemoryOnce(TrainerCallback):
        failed = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.failed and state.global_step == 2:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")

    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(
        full_model, callback, auto_find_batch_size=True, logging_steps=1, save_strategy="steps", save_steps=3
    )
    trainer.add_callback(OutOfMemoryOnce())
    trainer.train()
    run = finished_run(callback)
    carried = json.loads((tmp_path / "output" / "checkpoint-6" / "trainer_state.json").read_text())

    stored = client.get_run(run.run_id)
    assert len(runs_of(client, tracker)) == 1
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["tracking_callbacks.attempts"] == "2"
    assert int(stored.data.tags["tracking_callbacks.train_batch_size"]) == trainer.state.train_batch_size < 4
    assert [step for step, _ in points(client, run, "train/loss")] == [1, 1, 2, 3, 4, 5, 6]
    assert carried["stateful_callbacks"]["tracking_callbacks"]["run_key"] == run.run_key


def test_a_trainer_is_pickled_without_its_run(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any
) -> None:
    callback = MLflowTrainerCallback(tracker, tags={"team": "blue"}, log_model=False)
    trainer = make_trainer(full_model, callback)
    trainer.evaluate()  # it starts a run

    copies = [pickle.loads(pickle.dumps(trainer)).callback_handler.callbacks, copy.deepcopy([callback])]
    copied = [one for callbacks in copies for one in callbacks if isinstance(one, MLflowTrainerCallback)]

    assert callback.run is not None
    assert [one.run for one in copied] == [None, None]
    assert "tracking_callbacks" not in json.dumps(trainer.args.to_dict())
    make_trainer(full_model, copied[0]).train()
    trainer.train()
    assert finished_run(copied[0]).run_key != finished_run(callback).run_key


def test_our_callback_does_not_change_what_other_callbacks_see(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any
) -> None:
    class Witness(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, tuple[str, ...]]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append(("log", state.global_step, tuple(logs)))

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            self.seen.append(("evaluate", state.global_step, tuple(metrics)))

    witnesses = []
    for ours in (MLflowTrainerCallback(tracker, log_model=False), None):
        trainer = make_trainer(
            copy.deepcopy(full_model), ours or MLflowTrainerCallback(), eval_strategy="steps", eval_steps=3
        )
        if ours is None:
            trainer.pop_callback(MLflowTrainerCallback)
        trainer.add_callback(Witness)
        witness = trainer.callback_handler.callbacks[-1]
        trainer.train()
        witnesses.append(witness.seen)

    assert witnesses[0] == witnesses[1]
    assert len(witnesses[0]) >= 7


def test_each_training_run_that_cannot_be_opened_says_so_once(
    tracker: MLflowTracker, make_trainer: TrainerFactory, full_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MLflowTracker):
        def start_run(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no run today")

    broken = Broken(tracker.settings.tracking_uri)
    trainer = make_trainer(full_model, MLflowTrainerCallback(broken, log_model=False))
    heard = []
    for _ in range(2):
        caplog.clear()
        trainer.train()
        heard.append([record.message for record in caplog.records if record.levelname == "ERROR"])

    assert [message.partition(";")[0] for message in heard[0]] == [
        "tracking failed in MLflowTrainerCallback._begin",
        "tracking failed in MLflowTrainerCallback.on_log",
    ]
    assert heard[1] == heard[0]
