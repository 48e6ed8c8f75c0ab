"""Pure: how well a classifier's probabilities separate the classes, and how far they can be believed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassifierCurves", "curves_of", "expected_calibration_error", "per_class_statistics", "probabilities_of"]

_BINS = 15  # as in the paper
_MOST_POINTS = 200  # of one curve; a picture shows no more
_MOST_CLASSES = 10

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ClassifierCurves = dict[str, Any]


def probabilities_of(scores: NDArray[Any]) -> FloatArray:
    """Return the softmax of logits; what is a distribution already stays as it is.

    Args:
        scores: Shape (samples, classes).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size and values.min() >= 0 and np.allclose(values.sum(axis=1), 1.0, atol=1e-4):
        return values
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def expected_calibration_error(
    references: IntArray, probabilities: FloatArray
) -> tuple[float, list[tuple[float, float, int]]]:
    """Return the expected calibration error, and confidence, accuracy and number of samples of each bin.

    ``ECE = Σ n_b / n · |accuracy_b - confidence_b|`` over 15 bins of equal width of the predicted class's probability
    (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3).

    Args:
        references: Class ids, shape (samples,).
        probabilities: Shape (samples, classes).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == references
    places = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = []
    for place in range(_BINS):
        own = places == place
        if own.any():
            bins.append((float(confidence[own].mean()), float(right[own].mean()), int(own.sum())))
    error = sum(count * abs(accuracy - mean) for mean, accuracy, count in bins) / max(len(references), 1)
    return float(error), bins


def curves_of(references: IntArray, scores: NDArray[Any], labels: Sequence[str]) -> ClassifierCurves | None:
    """Return the ROC, precision-recall and calibration curves of a classifier, as JSON can hold them.

    With two classes there is one curve, of the second; with more one for each class against the others. It is None if
    there are more than ten classes, a value is not finite, or only one class occurs.

    Args:
        references: Class ids, shape (samples,).
        scores: Logits or probabilities, shape (samples, classes).
        labels: The classes' names.
    """
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    if len(labels) > _MOST_CLASSES or scores.shape != (len(references), len(labels)) or not np.isfinite(scores).all():
        return None
    if len(np.unique(references)) < 2:
        return None
    probabilities = probabilities_of(scores)
    found: ClassifierCurves = {"labels": list(labels), "roc": {}, "precision_recall": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in [1] if len(labels) == 2 else range(len(labels)):
            mine = references == index
            if not mine.any() or mine.all():
                continue
            false, true, _ = roc_curve(mine, probabilities[:, index])
            precision, recall, _ = precision_recall_curve(mine, probabilities[:, index])
            found["roc"][labels[index]] = {"fpr": _thin(false), "tpr": _thin(true), "auc": float(auc(false, true))}
            found["precision_recall"][labels[index]] = {
                "recall": _thin(recall),
                "precision": _thin(precision),
                "average_precision": float(average_precision_score(mine, probabilities[:, index])),
            }
    error, bins = expected_calibration_error(references, probabilities)
    confidence, accuracy, count = zip(*bins, strict=True)
    found["calibration"] = {
        "confidence": list(confidence),
        "accuracy": list(accuracy),
        "count": list(count),
        "ece": error,
    }
    return found


def per_class_statistics(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall and F1 of each class from a confusion matrix; empty for more than ten classes."""
    counts = np.asarray(matrix, dtype=np.float64)
    if not 0 < len(labels) <= _MOST_CLASSES:
        return {}
    right, predicted, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    recall = np.divide(right, true, out=np.zeros_like(right), where=true > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(right), where=both > 0)
    return {
        label: {"precision": float(precision[at]), "recall": float(recall[at]), "f1": float(f1[at])}
        for at, label in enumerate(labels)
    }


def _thin(values: FloatArray) -> list[float]:
    chosen = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int)
    return [round(float(value), 6) for value in values[chosen]]
