"""The datasets of a Trainer are inputs of the run; with ``record=False`` nothing is recorded automatically."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from mlflow import MlflowClient
from peft import PeftModel
from transformers import Trainer

from huggingface.reading import artifacts, finished_run
from tracking_callbacks import Delivery, MLflowTracker, Recording
from tracking_callbacks.huggingface import MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]


def inputs(client: MlflowClient, run: Any) -> list[tuple[str, str, int]]:
    """Return name, context and number of rows of a run's datasets."""
    return sorted(
        (one.dataset.name, one.tags[0].value, json.loads(one.dataset.profile)["num_rows"])
        for one in client.get_run(run.run_id).inputs.dataset_inputs
    )


def test_every_dataset_of_a_trainer_is_an_input_of_its_run(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    lora_model: PeftModel,
    sentences: Dataset,
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    sets = {"books": sentences.select(range(6)), "films": sentences.select(range(4))}
    trainer = make_trainer(lora_model, callback, eval_dataset=sets, eval_strategy="steps", eval_steps=3)
    trainer.train()
    trainer.predict(sentences.select(range(2)))
    run = finished_run(callback)

    rows = len(sentences)
    assert inputs(client, run) == [
        ("eval_books", "evaluation", 6),
        ("eval_films", "evaluation", 4),
        ("test", "test", 2),
        ("train", "training", rows),
    ]
    assert not [path for path in artifacts(client, run) if path.startswith("data/")]


def test_a_sample_shows_the_text_and_the_label_behind_the_numbers(
    server: Any,
    shared_journal: Path,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    lora_model: PeftModel,
    tmp_path: Path,
) -> None:
    tracker = MLflowTracker(
        server.uri, "samples", record=Recording(sample_rows=True), delivery=Delivery(journal_root=shared_journal)
    )
    callback = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(lora_model, callback, max_steps=1).train()
    run = finished_run(callback)

    table = json.loads(Path(client.download_artifacts(run.run_id, "data/sample_train.json", str(tmp_path))).read_text())
    assert table["columns"][:2] == ["text", "label name"]
    assert set(table["columns"]) >= {"input_ids", "labels"}
    texts = {tuple(row[:2]) for row in table["data"]}
    assert all(len(text.split()) == 2 and label in ("negative", "positive") for text, label in texts)


def test_with_record_false_a_run_holds_only_params_and_metrics(
    server: Any, shared_journal: Path, client: MlflowClient, make_trainer: TrainerFactory, lora_model: PeftModel
) -> None:
    tracker = MLflowTracker(server.uri, "bare", record=False, delivery=Delivery(journal_root=shared_journal))
    callback = MLflowTrainerCallback(tracker)
    trainer = make_trainer(lora_model, callback, eval_strategy="steps", eval_steps=3)
    trainer.train()
    run = finished_run(callback)

    stored = client.get_run(run.run_id)
    assert (stored.data.params["lora.r"], "eval/f1" in stored.data.metrics) == ("4", True)
    assert (artifacts(client, run), stored.inputs.dataset_inputs, stored.outputs.model_outputs) == (set(), [], [])
    assert {tag.split(".")[0] for tag in stored.data.tags} == {"mlflow", "tracking_callbacks"}
    assert client.search_logged_models([stored.info.experiment_id]) == []
