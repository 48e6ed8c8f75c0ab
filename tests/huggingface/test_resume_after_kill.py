"""Training killed by SIGKILL resumes in another process from its last checkpoint, in the same run."""

from __future__ import annotations

import signal
from pathlib import Path

from mlflow import MlflowClient
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from faults.trainers import Trainers
from huggingface.reading import finished_run, runs_of
from processes import wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

ROWS = [{"input_ids": [2 + number % 2, 4], "attention_mask": [1, 1], "labels": number % 2} for number in range(16)]


def test_training_resumed_after_a_kill_continues_its_run_and_records_changed_params(
    trainers: Trainers, server, client: MlflowClient, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    killed = trainers.start("huggingface", tmp_path / "killed", server.uri, trouble="pause", arguments=saving)
    wait_for(lambda: killed.reached("paused"), "training reaches its third step")
    killed.send(signal.SIGKILL)
    killed.delivered()
    tracker = MLflowTracker(server.uri, killed.experiment, delivery=Delivery(journal_root=killed.journal))
    (before,) = runs_of(client, tracker)
    steps_before = [point.step for point in client.get_metric_history(before.info.run_id, "train/loss")]

    callback = MLflowTrainerCallback(tracker, log_model=False)
    checkpoint = killed.folder / "output" / "checkpoint-2"
    trainer = Trainer(
        model=BertForSequenceClassification.from_pretrained(checkpoint),
        args=TrainingArguments(
            output_dir=str(killed.folder / "output"),
            max_steps=8,  # 12 before
            learning_rate=2e-2,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=ROWS,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    run = finished_run(callback)
    (after,) = runs_of(client, tracker)
    history = client.get_metric_history(run.run_id, "train/loss")

    assert before.info.status == "KILLED"
    assert run.run_id == before.info.run_id == after.info.run_id
    assert after.info.status == "FINISHED"
    assert steps_before == [
        1,
        2,
    ]  # a step is logged after its last hook, and the kill came during the third step's hook
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [point.value for point in history[2:]] == [
        entry["loss"] for entry in trainer.state.log_history if "loss" in entry and entry["step"] > 2
    ]
    assert (after.data.params["max_steps"], after.data.params["learning_rate"]) == ("12", "0.01")
    assert (after.data.tags["param_drift.max_steps"], after.data.tags["param_drift.learning_rate"]) == ("8", "0.02")
