"""``compute_metrics`` for what is not a choice of one class per row: numbers, several labels, entities in a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks.errors import InputError
from tracking_callbacks.huggingface.classification import IGNORED_LABEL, class_ids, first_array
from tracking_callbacks.huggingface.reports import TaskReport, keep_report

if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = ["MultiLabelMetrics", "RegressionMetrics", "TokenClassificationMetrics", "entities_of"]

_MOST_POINTS = 2_000  # of a picture
_MOST_NAMES = 20

FloatArray = NDArray[np.float64]
Batch = TypeVar("Batch")


class _Batches(Generic[Batch]):
    """Keeps the batches of an evaluation until the last one, for ``TrainingArguments(batch_eval_metrics=True)``."""

    def __init__(self) -> None:
        self._kept: list[Batch] = []

    def add(self, batch: Batch, *, last: bool) -> list[Batch]:
        """Return all batches at the last one, none before."""
        self._kept.append(batch)
        if not last:
            return []
        batches, self._kept = self._kept, []
        return batches


class RegressionMetrics:
    """``mse``, ``rmse``, ``mae``, ``r2`` (scikit-learn), ``pearson`` and ``spearman`` (scipy) of predicted numbers.

    ``r2`` and the correlations are NaN where they are undefined: for a single row, or for values that are all the same.
    """

    def __init__(self) -> None:
        self._batches: _Batches[tuple[FloatArray, FloatArray]] = _Batches()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Return the statistics of one evaluation.

        Args:
            prediction: ``predictions`` of shape ``(rows,)`` or ``(rows, 1)``, or a tuple that begins with them;
                ``label_ids`` of the same number of values.
            compute_result: False for all but the last batch.

        Raises:
            InputError: There are not as many predictions as labels.
        """
        predicted = np.asarray(first_array(prediction.predictions), dtype=np.float64).ravel()
        references = np.asarray(first_array(prediction.label_ids), dtype=np.float64).ravel()
        if predicted.shape != references.shape:
            raise InputError(f"expected one prediction for each label, got {predicted.size} for {references.size}")
        batches = self._batches.add((references, predicted), last=compute_result)
        if not compute_result:
            return {}
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        references, predicted = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        squared = float(mean_squared_error(references, predicted))
        varied = len(references) > 1 and np.ptp(references) > 0
        statistics = {
            "mse": squared,
            "rmse": squared**0.5,
            "mae": float(mean_absolute_error(references, predicted)),
            "r2": float(r2_score(references, predicted)) if varied else float("nan"),
            **_correlations(references, predicted, varied=bool(varied and np.ptp(predicted) > 0)),
        }
        shown = np.linspace(0, len(references) - 1, min(len(references), _MOST_POINTS)).round().astype(int)
        content = {
            "rows": len(references),
            "true": references[shown].tolist(),
            "predicted": predicted[shown].tolist(),
        }
        return keep_report(TaskReport(statistics, "regression", content))


class MultiLabelMetrics:
    """F1 (micro, macro, weighted, per sample), exact matches and ROC AUC of rows with several labels, by scikit-learn.

    Args:
        threshold: Probability from which a label counts as predicted; the probabilities are the sigmoid of the logits.
        labels: The labels' names in the order of their ids. None means that the ids are the names.
    """

    def __init__(self, threshold: float = 0.5, labels: Sequence[str] | None = None) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"threshold: expected a probability between 0 and 1, got {threshold!r}")
        self.threshold = threshold
        self.labels = None if labels is None else tuple(labels)
        self._batches: _Batches[tuple[NDArray[Any], FloatArray]] = _Batches()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Return the statistics of one evaluation.

        Args:
            prediction: ``predictions`` are logits of shape ``(rows, labels)``, or a tuple that begins with them;
                ``label_ids`` are zeros and ones of the same shape.
            compute_result: False for all but the last batch.

        Raises:
            InputError: The shapes differ, or there is not one name for each label.
        """
        logits = np.asarray(first_array(prediction.predictions), dtype=np.float64)
        references = np.asarray(first_array(prediction.label_ids)) > 0
        if logits.shape != references.shape or logits.ndim != 2:
            raise InputError(
                f"expected logits and labels of shape (rows, labels), got {logits.shape}, {references.shape}"
            )
        names = self.labels or tuple(map(str, range(logits.shape[1])))
        if len(names) != logits.shape[1]:
            raise InputError(f"labels: {len(names)} names given for {logits.shape[1]} labels")
        probabilities = 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
        batches = self._batches.add((references, probabilities), last=compute_result)
        if not compute_result:
            return {}
        from sklearn.metrics import (
            accuracy_score,
            f1_score,
            hamming_loss,
            precision_recall_fscore_support,
            roc_auc_score,
        )

        references, probabilities = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        predicted = probabilities >= self.threshold
        scores = {
            f"f1_{average}": float(f1_score(references, predicted, average=average, zero_division=0))
            for average in ("micro", "macro", "weighted", "samples")
        }
        judged = [at for at in range(references.shape[1]) if 0 < references[:, at].sum() < len(references)]
        area = roc_auc_score(references[:, judged], probabilities[:, judged]) if judged else float("nan")
        statistics = {
            "f1": scores["f1_micro"],
            **scores,
            "accuracy": float(accuracy_score(references, predicted)),
            "hamming_loss": float(hamming_loss(references, predicted)),
            "roc_auc": float(area),
        }
        of_label = np.transpose(precision_recall_fscore_support(references, predicted, zero_division=0)).tolist()
        return keep_report(TaskReport(statistics, "scores", _content(dict(zip(names, of_label, strict=True)))))


class Entity(NamedTuple):
    """An entity in a text; `end` is the place after its last token."""

    kind: str
    start: int
    end: int


class TokenClassificationMetrics:
    """Precision, recall and F1 of whole entities, and the accuracy of tokens.

    An entity counts only if its kind and both ends are right, as in the CoNLL-2000 script ``conlleval`` and in
    seqeval's default mode. The averages are micro averages over all entities; ``f1_<kind>`` is that of one kind.

    Args:
        labels: The names of the tags in the order of their ids: ``O``, ``B-PER``, ``I-PER``, …; the schemes IOB1, IOB2
            and IOBES are understood.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._batches: _Batches[tuple[list[list[str]], list[list[str]]]] = _Batches()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Return the statistics of one evaluation.

        Args:
            prediction: ``predictions`` are logits of shape ``(rows, tokens, tags)`` or tag ids of shape
                ``(rows, tokens)``; ``label_ids`` are tag ids, with -100 for tokens that do not count.
            compute_result: False for all but the last batch.

        Raises:
            InputError: The shapes do not match, or a tag has no name.
        """
        references = np.asarray(first_array(prediction.label_ids))
        predicted = class_ids(prediction.predictions, references)
        counted = references != IGNORED_LABEL
        highest = int(max(references.max(initial=-1), predicted[counted].max(initial=-1)))
        if highest >= len(self.labels):
            raise InputError(f"labels: {len(self.labels)} names given, but tag id {highest} occurs")
        rows = [
            [[self.labels[int(tag)] for tag in row[own]] for row, own in zip(ids, counted, strict=True)]
            for ids in (references, predicted)
        ]
        batches = self._batches.add((rows[0], rows[1]), last=compute_result)
        if not compute_result:
            return {}
        true = [row for batch in batches for row in batch[0]]
        found = [row for batch in batches for row in batch[1]]
        tokens = [(a, b) for x, y in zip(true, found, strict=True) for a, b in zip(x, y, strict=True)]
        wanted = {(at, entity) for at, row in enumerate(true) for entity in entities_of(row)}
        given = {(at, entity) for at, row in enumerate(found) for entity in entities_of(row)}
        precision, recall, f1, _ = _scores(wanted, given)
        of_kind = {
            kind: _scores({one for one in wanted if one[1].kind == kind}, {one for one in given if one[1].kind == kind})
            for kind in sorted({entity.kind for _, entity in wanted | given})
        }
        accuracy = sum(a == b for a, b in tokens) / len(tokens) if tokens else 0.0
        statistics = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy}
        statistics |= {f"f1_{kind}": scores[2] for kind, scores in of_kind.items()}
        return keep_report(TaskReport(statistics, "scores", _content(of_kind)))


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities in a row of tags, by the rules of ``conlleval``.

    An entity begins at ``B-`` or ``S-``, and at ``I-`` or ``E-`` where no entity of the same kind goes on. It ends at
    ``E-`` or ``S-`` and before everything that does not continue it.
    """
    return list(_entities(tags))


def _entities(tags: Sequence[str]) -> Iterator[Entity]:
    kind, start, closed = "", 0, True
    for place, tag in enumerate(tags):
        mark, _, own = tag.partition("-")
        own = own or ("" if mark == "O" else "_")  # tags without kinds, such as B and I
        continues = not closed and mark in ("I", "E") and own == kind
        if not closed and not continues:
            yield Entity(kind, start, place)
        if mark == "O":
            closed = True
            continue
        if not continues:
            kind, start = own, place
        closed = mark in ("E", "S")
        if closed:
            yield Entity(kind, start, place + 1)
    if not closed:
        yield Entity(kind, start, len(tags))


def _scores(wanted: set[Any], given: set[Any]) -> tuple[float, float, float, int]:
    """Return precision, recall, F1, and the number of entities that there are."""
    right = len(wanted & given)
    precision = right / len(given) if given else 0.0
    recall = right / len(wanted) if wanted else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0, len(wanted)


def _content(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return what the picture of the scores is drawn from: of many names, those that occur most often."""
    common = sorted(scores, key=lambda name: -scores[name][3])[:_MOST_NAMES]
    fields = ("precision", "recall", "f1", "support")
    shown = {name: dict(zip(fields, scores[name], strict=True)) for name in scores if name in common}
    return {"names": len(scores), "scores": shown}


def _correlations(references: FloatArray, predicted: FloatArray, *, varied: bool) -> dict[str, float]:
    if not varied:
        return {"pearson": float("nan"), "spearman": float("nan")}
    from scipy.stats import pearsonr, spearmanr

    return {
        "pearson": float(pearsonr(references, predicted).statistic),
        "spearman": float(spearmanr(references, predicted).statistic),
    }
