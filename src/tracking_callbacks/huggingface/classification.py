"""``ClassificationMetrics``: a ``compute_metrics`` for classifiers, and the report behind its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks.errors import InputError
from tracking_callbacks.huggingface.reports import keep_report

if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = ["IGNORED_LABEL", "ClassificationMetrics", "ClassificationReport", "class_ids", "first_array"]

IGNORED_LABEL = -100  # transformers' collators give it to tokens without a label

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """One evaluation: its statistics, and what they were computed from.

    Attributes:
        statistics: ``accuracy``, ``f1``, … as returned to ``Trainer``.
        labels: The classes' names, in the order of the matrix.
        matrix: How often class ``i`` (row) was predicted as class ``j`` (column).
        table: scikit-learn's classification report as text.
        references: True class ids, shape (samples,).
        scores: Logits, shape (samples, classes); None if the evaluation gave class ids, or several labels a row.
    """

    statistics: dict[str, float]
    labels: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    table: str
    references: IntArray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)
    scores: NDArray[Any] | None = field(default=None, repr=False, compare=False)


class ClassificationMetrics:
    """Accuracy, F1, precision and recall for ``Trainer(compute_metrics=…)``, computed by scikit-learn.

    With two classes, F1, precision and recall are those of class 1; with more they are macro averages.
    ``f1_weighted`` is the average weighted by class size in both cases. A class that is never predicted
    counts as 0. Labels of -100 are ignored. With ``MLflowTrainerCallback``, the confusion matrix and the
    classification report of every evaluation become artifacts of the run.

    Args:
        labels: The classes' names in the order of their ids. None means that the ids are the names.
    """

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        self.labels = None if labels is None else tuple(labels)
        self._batches: list[tuple[IntArray, IntArray]] = []
        self._scores: list[NDArray[Any] | None] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Return the statistics of one evaluation.

        Args:
            prediction: ``predictions`` are logits of shape ``(*label shape, classes)``, a tuple that begins
                with them, or class ids in the labels' shape; ``label_ids`` are class ids.
            compute_result: False for all but the last batch with
                ``TrainingArguments(batch_eval_metrics=True)``.

        Raises:
            InputError: The shapes of predictions and labels do not match, or a label has no name.
        """
        references = _array(prediction.label_ids)
        predicted = class_ids(prediction.predictions, references)
        counted = references != IGNORED_LABEL
        self._batches.append((references[counted].astype(np.int64), predicted[counted].astype(np.int64)))
        self._scores.append(_scores_of_rows(prediction.predictions, references, counted))
        if not compute_result:
            return {}
        batches, self._batches = self._batches, []
        scores, self._scores = self._scores, []
        report = _report(
            np.concatenate([batch[0] for batch in batches]),
            np.concatenate([batch[1] for batch in batches]),
            labels=self.labels,
            classes=_number_of_classes(prediction.predictions, references),
        )
        known = [one for one in scores if one is not None]
        return keep_report(
            replace(
                report,
                references=np.concatenate([batch[0] for batch in batches]),
                scores=np.concatenate(known) if len(known) == len(scores) else None,
            )
        )


def _report(
    references: IntArray, predicted: IntArray, *, labels: tuple[str, ...] | None, classes: int | None
) -> ClassificationReport:
    from sklearn.metrics import (
        accuracy_score,
        classification_report,
        confusion_matrix,
        precision_recall_fscore_support,
    )

    seen = int(max(references.max(initial=-1), predicted.max(initial=-1))) + 1
    known = max(seen, classes or 0, 2) if labels is None else len(labels)
    if seen > known:
        raise InputError(
            f"labels: {known} names given, but class id {seen - 1} occurs; expected a name for every class"
        )
    ids = list(range(known))
    names = labels or tuple(str(class_id) for class_id in ids)
    average = "binary" if known == 2 else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(references, predicted, average=average, zero_division=0)
    weighted = precision_recall_fscore_support(references, predicted, average="weighted", zero_division=0)
    return ClassificationReport(
        statistics={
            "accuracy": float(accuracy_score(references, predicted)),
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            "f1_weighted": float(weighted[2]),
        },
        labels=names,
        matrix=tuple(tuple(int(n) for n in row) for row in confusion_matrix(references, predicted, labels=ids)),
        table=classification_report(references, predicted, labels=ids, target_names=names, zero_division=0, digits=4),
    )


def class_ids(predictions: Any, references: NDArray[Any]) -> NDArray[Any]:
    """Return the predicted class ids in the labels' shape, from ids or logits.

    Raises:
        InputError: The shapes do not match.
    """
    scores = first_array(predictions)
    if scores.shape == references.shape:
        return scores
    if scores.shape[:-1] == references.shape and scores.shape[-1] > 1:
        return np.asarray(scores.argmax(axis=-1))
    raise InputError(
        f"predictions of shape {scores.shape} do not fit labels of shape {references.shape}; "
        f"expected class ids of the same shape, or logits of shape {(*references.shape, 'classes')}"
    )


def _scores_of_rows(predictions: Any, references: NDArray[Any], counted: NDArray[Any]) -> NDArray[Any] | None:
    """Return the logits, if each row of the dataset has one label."""
    scores = first_array(predictions)
    return scores if references.ndim == 1 and scores.ndim == 2 and counted.all() else None


def _number_of_classes(predictions: Any, references: NDArray[Any]) -> int | None:
    scores = first_array(predictions)
    return None if scores.shape == references.shape else scores.shape[-1]


def first_array(predictions: Any) -> NDArray[Any]:
    """Return predictions as an array; of a tuple, its first part."""
    return _array(predictions[0] if isinstance(predictions, (tuple, list)) else predictions)


def _array(values: Any) -> NDArray[Any]:
    if hasattr(
        values, "detach"
    ):  # a torch tensor, on any device and of any precision: batch_eval_metrics hands them out
        values = values.detach().float().cpu().numpy() if values.is_floating_point() else values.detach().cpu().numpy()
    return np.asarray(values)
