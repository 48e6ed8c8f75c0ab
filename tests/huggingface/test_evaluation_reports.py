"""What an evaluation's run holds besides its numbers: curves, figures of each class, errors, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from sklearn.metrics import f1_score, roc_auc_score
from transformers import EvalPrediction, PreTrainedTokenizerFast, Trainer, set_seed

from huggingface.reading import artifacts, finished_run
from huggingface.vocabulary import LABELS, WORDS
from tracking_callbacks import Delivery, InputError, MLflowTracker, Recording
from tracking_callbacks.huggingface import (
    MLflowTrainerCallback,
    MultiLabelMetrics,
    RegressionMetrics,
    TokenClassificationMetrics,
)
from tracking_callbacks.huggingface.classifier_curves import curves_of, expected_calibration_error, probabilities_of
from tracking_callbacks.huggingface.explanation import Explained, highlighted, words_of
from tracking_callbacks.huggingface.task_metrics import entities_of


@pytest.fixture
def planted(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Sentences in which the word "book", and nothing else, makes the label."""
    texts = [
        f"{first} {noun} {last}".strip() for first in WORDS[:6] for noun in WORDS[6:] for last in ("", *WORDS[:4:2])
    ]
    return Dataset.from_dict({**tokenizer(texts), "text": texts, "labels": [int("book" in text) for text in texts]})


@pytest.fixture
def all_recorded(server: Any, shared_journal: Path, tmp_path: Path) -> MLflowTracker:
    record = Recording(sample_rows=True, importance=True)
    return MLflowTracker(server.uri, tmp_path.name, record=record, delivery=Delivery(journal_root=shared_journal))


def table(uri: str) -> pd.DataFrame:
    content = mlflow.artifacts.load_dict(uri)
    return pd.DataFrame(content["data"], columns=content["columns"])


@pytest.mark.parametrize(
    "sampling", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["in order", "by length"]
)
def test_the_planted_word_is_found_first_and_the_worst_errors_lead_their_table(
    all_recorded: MLflowTracker,
    client: MlflowClient,
    server: Any,
    make_trainer: Callable[..., Trainer],
    full_model: Any,
    planted: Dataset,
    sampling: dict[str, Any],
) -> None:
    set_seed(0)
    labels = [1 - label if at in (3, 30) else label for at, label in enumerate(planted["labels"])]
    wrong = planted.remove_columns("labels").add_column("labels", labels)
    callback = MLflowTrainerCallback(all_recorded, log_model=False)
    trainer = make_trainer(full_model, callback, max_steps=150, eval_dataset=wrong, eval_strategy="no", **sampling)
    trainer.train_dataset = planted
    trainer.evaluate()
    trainer.train()
    folder = "evaluation/eval/step-150"
    assert full_model.training, "explaining has left the mode as it was"
    trainer.evaluate()
    run = finished_run(callback)
    mlflow.set_tracking_uri(server.uri)
    try:
        words = table(f"runs:/{run.run_id}/{folder}/words.json")
        errors = table(f"runs:/{run.run_id}/{folder}/errors.json")
        page = mlflow.artifacts.load_text(f"runs:/{run.run_id}/{folder}/explanations.html")
        curves = mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{folder}/curves.json")
    finally:
        mlflow.set_tracking_uri(None)
    metrics = client.get_run(run.run_id).data.metrics

    first = words[words["label"] == "positive"].iloc[0]
    assert (first["word"], words.iloc[0]["rows"] > 1) == ("book", True)
    assert first["importance"] > 2 * words[words["label"] == "positive"]["importance"].iloc[1]
    assert "<b>positive</b>" in page
    assert list(errors["row"][:2].sort_values()) == [3, 30]
    assert list(errors["text"][:2]) == [wrong[int(row)]["text"] for row in errors["row"][:2]]
    assert (errors["label"][:2] != errors["prediction"][:2]).all()
    assert (errors["label"][2:] == errors["prediction"][2:]).all()
    assert errors["probability"][0] >= errors["probability"][1] > 0.5
    assert errors["probability"][2] == errors["probability"][2:].min(), "then the least sure ones"
    assert set(curves["roc"]) == {"positive"}
    assert metrics["eval/roc_auc"] == pytest.approx(curves["roc"]["positive"]["auc"])
    assert metrics["eval/ece"] == pytest.approx(curves["calibration"]["ece"])
    assert metrics["eval/class/positive/f1"] == pytest.approx(metrics["eval/f1"])
    found = artifacts(client, run, folder)
    assert {f"{folder}/feature_importance.png", f"{folder}/roc_precision_recall_calibration.png"} <= found


def test_rows_and_words_are_logged_only_where_that_is_asked_for(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: Callable[..., Trainer],
    full_model: Any,
    planted: Dataset,
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, callback, eval_dataset=planted, eval_strategy="steps", eval_steps=6).train()
    names = {Path(path).name for path in artifacts(client, finished_run(callback), "evaluation")}

    assert {"curves.json", "confusion_matrix.json"} <= names
    assert not {"errors.json", "words.json", "explanations.html"} & names


# -- pure ------------------------------------------------------------------------------------------------------------


def test_the_calibration_error_is_that_of_the_paper() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    error, bins = expected_calibration_error(np.array([0, 1, 0, 0]), probabilities)

    assert error == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    assert bins == [(pytest.approx(0.6), 1.0, 2), (pytest.approx(0.9), 0.5, 2)]


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_areas_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    references = np.concatenate([np.arange(classes), random.integers(0, classes, 30)])
    logits = random.normal(size=(len(references), classes)) * 3
    labels = [f"class {index}" for index in range(classes)]
    curves = curves_of(references, logits, labels)

    assert curves is not None
    probabilities = probabilities_of(logits)
    for label, one in curves["roc"].items():
        index = labels.index(label)
        assert one["auc"] == pytest.approx(roc_auc_score(references == index, probabilities[:, index]))
    assert len(curves["roc"]) == (1 if classes == 2 else classes)
    json.dumps(curves, allow_nan=False)


@pytest.mark.parametrize(
    ("references", "scores"),
    [([0, 0], [[1.0, 0.0], [1.0, 0.0]]), ([0, 1], [[np.nan, 0.0], [1.0, 0.0]]), ([], np.zeros((0, 2)))],
)
def test_there_are_no_curves_of_what_cannot_be_separated(references: Any, scores: Any) -> None:
    assert curves_of(np.array(references, dtype=np.int64), np.array(scores, dtype=float), LABELS) is None


def test_numbers_are_judged_by_their_distance() -> None:
    metrics = RegressionMetrics()
    assert metrics(EvalPrediction(np.array([[1.0], [2.0]]), np.array([1.0, 4.0])), compute_result=False) == {}
    found = metrics(EvalPrediction((np.array([[3.0]]),), np.array([3.0])))

    assert found["mse"] == pytest.approx(4 / 3)
    assert found["rmse"] == pytest.approx((4 / 3) ** 0.5)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["spearman"] == pytest.approx(0.5)
    single = RegressionMetrics()(EvalPrediction(np.array([1.0]), np.array([1.0])))
    assert np.isnan(single["r2"])
    with pytest.raises(InputError, match="one prediction for each label, got 2 for 1"):
        RegressionMetrics()(EvalPrediction(np.ones(2), np.ones(1)))


def test_rows_with_several_labels_are_judged_label_by_label() -> None:
    logits = np.array([[9.0, -9.0, 9.0], [-9.0, 9.0, -900.0], [9.0, 9.0, -9.0]])
    labels = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0]])
    found = MultiLabelMetrics()(EvalPrediction(logits, labels))

    assert found["f1"] == found["f1_micro"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert found["f1_samples"] == pytest.approx(f1_score(labels, logits > 0, average="samples"))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["hamming_loss"] == pytest.approx(2 / 9)
    with pytest.raises(InputError, match=r"\(rows, labels\)"):
        MultiLabelMetrics()(EvalPrediction(np.ones(3), np.ones(3)))


# What seqeval 1.2.2's `get_entities` returned for the same tags, with the end moved behind the last token.
@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER", [("PER", 0, 2)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("S-PER E-LOC B-ORG E-ORG I-ORG", [("PER", 0, 1), ("LOC", 1, 2), ("ORG", 2, 4), ("ORG", 4, 5)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, entities: list[tuple[str, int, int]]) -> None:
    assert [tuple(entity) for entity in entities_of(tags.split())] == entities


def test_whole_entities_count() -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    labels = np.array([[1, 2, 0, 3, -100], [3, 0, 0, 0, -100]])
    predicted = np.array([[1, 0, 0, 3, 1], [3, 0, 3, 0, 2]])
    found = TokenClassificationMetrics(names)(EvalPrediction(np.eye(4)[predicted], labels))

    assert found["precision"] == pytest.approx(2 / 4)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(4 / 7)
    assert (found["f1_PER"], found["f1_LOC"]) == (0.0, pytest.approx(0.8))
    assert found["accuracy"] == pytest.approx(6 / 8)
    with pytest.raises(InputError, match="2 names given, but tag id 3"):
        TokenClassificationMetrics(names[:2])(EvalPrediction(predicted, labels))


def test_a_word_in_a_single_row_comes_last_and_a_page_shows_words_literally() -> None:
    rows = [
        Explained([("good", 0.5), ("once", 9.0)], "yes", 0.9),
        Explained([("Good", 0.7), ("<b>", -0.2)], "yes", 0.8),
    ]

    assert words_of(rows)[0] == ("yes", "good", pytest.approx(0.6), 2)
    assert [row[1] for row in words_of(rows)] == ["good", "once", "<b>"]
    assert "&lt;b&gt;" in highlighted(rows)


def test_each_task_has_its_picture_and_what_it_is_drawn_from(
    tracker: MLflowTracker, client: MlflowClient, server: Any, full_model: Any, make_trainer: Callable[..., Trainer]
) -> None:
    """The evaluations are hand-made: the hook receives what `Trainer` hands it."""
    numbers, several = RegressionMetrics(), MultiLabelMetrics(labels=["sad", "glad", "mad"])
    entities = TokenClassificationMetrics(["O", "B-PER", "B-LOC"])
    tags = np.array([[1, 0, 2], [1, 2, -100]])
    predictions = {
        "numbers": lambda: numbers(EvalPrediction(np.array([1.0, 2.5]), np.array([1.0, 2.0]))),
        "single": lambda: numbers(EvalPrediction(np.array([1.0]), np.array([1.0]))),  # its r2 is NaN
        "several": lambda: several(
            EvalPrediction(np.array([[9.0, -9, 9], [9, 9, -9]]), np.array([[1, 0, 1], [0, 1, 1]]))
        ),
        "entities": lambda: entities(EvalPrediction(np.eye(3)[[[1, 0, 2], [0, 2, 0]]], tags)),
    }
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(full_model, callback, max_steps=2)
    trainer.train()
    for name, compute in predictions.items():
        found = compute() | {"runtime": 0.1, "samples_per_second": 20.0}
        metrics = {f"{name}_{key}": value for key, value in found.items()}
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    run = finished_run(callback)
    logged = artifacts(client, run, "evaluation")
    mlflow.set_tracking_uri(server.uri)
    try:
        scores = {
            name: mlflow.artifacts.load_dict(f"runs:/{run.run_id}/evaluation/{name}/step-2/scores.json")["scores"]
            for name in ("several", "entities")
        }
        pairs = mlflow.artifacts.load_dict(f"runs:/{run.run_id}/evaluation/numbers/step-2/regression.json")
    finally:
        mlflow.set_tracking_uri(None)

    kinds = {"numbers": "regression", "single": "regression", "several": "scores", "entities": "scores"}
    assert {
        f"evaluation/{name}/step-2/{kind}.{ending}" for name, kind in kinds.items() for ending in ("json", "png")
    } <= logged
    assert pairs == {"rows": 2, "true": [1.0, 2.0], "predicted": [1.0, 2.5]}
    assert scores["several"] == {
        "sad": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
        "glad": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
        "mad": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
    }
    assert scores["entities"]["PER"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    with pytest.raises(InputError, match="3 names given for 2 labels"):
        several(EvalPrediction(np.ones((1, 2)), np.ones((1, 2))))
