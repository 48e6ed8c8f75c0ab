from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers import EvalPrediction

from tracking_callbacks import InputError
from tracking_callbacks.huggingface import ClassificationMetrics
from tracking_callbacks.huggingface.reports import take_report

RANDOM = np.random.default_rng(0)
TWO_CLASSES = RANDOM.integers(0, 2, 200)
TWO_LOGITS = RANDOM.normal(size=(200, 2))
THREE_CLASSES = RANDOM.integers(0, 3, 200)
THREE_LOGITS = RANDOM.normal(size=(200, 3))


def test_binary_scores_are_those_of_the_second_class() -> None:
    predicted = TWO_LOGITS.argmax(axis=-1)

    assert ClassificationMetrics()(EvalPrediction(TWO_LOGITS, TWO_CLASSES)) == {
        "accuracy": accuracy_score(TWO_CLASSES, predicted),
        "f1": f1_score(TWO_CLASSES, predicted),
        "precision": precision_score(TWO_CLASSES, predicted),
        "recall": recall_score(TWO_CLASSES, predicted),
        "f1_weighted": f1_score(TWO_CLASSES, predicted, average="weighted"),
    }


def test_scores_of_more_than_two_classes_are_averaged() -> None:
    predicted = THREE_LOGITS.argmax(axis=-1)

    statistics = ClassificationMetrics(("a", "b", "c"))(EvalPrediction(THREE_LOGITS, THREE_CLASSES))

    assert statistics["f1"] == f1_score(THREE_CLASSES, predicted, average="macro")
    assert statistics["precision"] == precision_score(THREE_CLASSES, predicted, average="macro")


@pytest.mark.parametrize(
    "predictions",
    [
        TWO_LOGITS,
        (TWO_LOGITS, "hidden states"),
        TWO_LOGITS.argmax(axis=-1),
        torch.tensor(TWO_LOGITS).bfloat16(),
    ],
    ids=["logits", "tuple", "class ids", "bfloat16 tensor"],
)
def test_every_form_of_predictions_gives_the_same_scores(predictions: object) -> None:
    exact = torch.tensor(TWO_LOGITS).bfloat16().float().numpy() if isinstance(predictions, torch.Tensor) else TWO_LOGITS

    statistics = ClassificationMetrics()(EvalPrediction(predictions, TWO_CLASSES))

    assert statistics["accuracy"] == accuracy_score(TWO_CLASSES, exact.argmax(axis=-1))


def test_labels_of_minus_100_are_ignored() -> None:
    labels = np.array([[0, 1, -100], [1, -100, -100]])
    logits = np.array([[[2, 0], [0, 2], [2, 0]], [[2, 0], [0, 2], [0, 2]]])

    assert ClassificationMetrics()(EvalPrediction(logits, labels))["accuracy"] == pytest.approx(2 / 3)


def test_batches_give_the_scores_of_the_whole_set() -> None:
    whole = ClassificationMetrics()(EvalPrediction(THREE_LOGITS, THREE_CLASSES))
    batched = ClassificationMetrics()

    parts = [
        batched(EvalPrediction(THREE_LOGITS[i : i + 50], THREE_CLASSES[i : i + 50]), compute_result=i == 150)
        for i in range(0, 200, 50)
    ]

    assert parts == [{}, {}, {}, whole]


def test_a_class_that_is_never_predicted_counts_as_zero_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    statistics = ClassificationMetrics()(EvalPrediction(np.array([0, 0, 0]), np.array([0, 1, 1])))

    assert (statistics["f1"], statistics["precision"]) == (0.0, 0.0)
    assert not recwarn.list


def test_an_array_that_does_not_fit_names_both_shapes() -> None:
    with pytest.raises(InputError, match=r"\(4, 1\).*\(3,\)"):
        ClassificationMetrics()(EvalPrediction(np.zeros((4, 1)), np.zeros(3, dtype=int)))


def test_a_class_without_a_name_is_an_error() -> None:
    with pytest.raises(InputError, match="2 names given, but class id 2"):
        ClassificationMetrics(("no", "yes"))(EvalPrediction(THREE_LOGITS, THREE_CLASSES))


def test_a_report_belongs_to_the_evaluation_with_its_scores() -> None:
    statistics = ClassificationMetrics(("no", "yes"))(EvalPrediction(np.array([0, 1, 1]), np.array([0, 0, 1])))
    metrics = {f"eval_{key}": value for key, value in statistics.items()}

    assert take_report({**metrics, "eval_accuracy": 0.1}, "eval") is None
    report = take_report(metrics, "eval")
    assert report is not None
    assert report.matrix == ((1, 1), (0, 1))
    assert report.labels == ("no", "yes")
    assert "yes" in report.table
    assert take_report(metrics, "eval") is None
