"""The metrics of every evaluation arrive once, in their own group; no evaluation overwrites another's report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from mlflow import MlflowClient
from sklearn.metrics import confusion_matrix
from transformers import Trainer

from huggingface.reading import artifacts, finished_run, points
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]


def test_each_evaluation_set_has_its_own_metric_group(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    sentences: Dataset,
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    sets = {"news": sentences.select(range(9)), "book_reviews": sentences.select(range(9, 18))}
    trainer = make_trainer(full_model, callback, eval_dataset=sets, eval_strategy="steps", eval_steps=3)
    trainer.train()
    run = finished_run(callback)

    history = trainer.state.log_history
    for name in sets:
        evaluated = [entry for entry in history if f"eval_{name}_loss" in entry]
        for metric in ("loss", "accuracy", "f1", "runtime"):
            expected = [(entry["step"], entry[f"eval_{name}_{metric}"]) for entry in evaluated]
            assert points(client, run, f"eval/{name}/{metric}") == expected
        assert [entry["step"] for entry in evaluated] == [3, 6]
    assert artifacts(client, run, "evaluation") == {
        f"evaluation/eval_{name}/step-{step}/{file}"
        for name in sets
        for step in (3, 6)
        for file in ("confusion_matrix.json", "confusion_matrix.png", "classification_report.txt")
    }


def test_a_second_evaluation_at_the_same_step_keeps_the_report_of_the_first(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    full_model: Any,
    sentences: Dataset,
    tmp_path: Path,
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback)
    trainer.train()
    parts = [sentences.select(range(9)), sentences.select(range(9, 18)), sentences]
    losses = [trainer.evaluate(part)["eval_loss"] for part in parts]
    predicted = [trainer.predict(part) for part in parts[:2]]
    run = finished_run(callback)
    found = {
        path: json.loads(Path(client.download_artifacts(run.run_id, path, str(tmp_path))).read_text())
        for path in artifacts(client, run, "evaluation")
        if path.endswith("confusion_matrix.json")
    }

    def matrix(output: Any) -> list[list[int]]:
        return confusion_matrix(output.label_ids, output.predictions.argmax(axis=-1), labels=[0, 1]).tolist()

    assert points(client, run, "eval/loss") == [(6, loss) for loss in losses]
    assert points(client, run, "test/loss") == [(6, output.metrics["test_loss"]) for output in predicted]
    assert found == {
        f"evaluation/{place}/confusion_matrix.json": {"labels": ["negative", "positive"], "matrix": matrix(output)}
        for place, output in {
            "eval/step-6": predicted[0],
            "eval/step-6-2": predicted[1],
            "eval/step-6-3": trainer.predict(sentences),
            "test/step-6": predicted[0],
            "test/step-6-2": predicted[1],
        }.items()
    }
