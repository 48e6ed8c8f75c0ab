"""Logs what lies behind the numbers of an evaluation: report, confusion matrix, curves, and the rows it got wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tracking_callbacks._callbacks.dataset_inputs import shortened
from tracking_callbacks._callbacks.metric_names import grouped_name
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.huggingface.classification import ClassificationReport
from tracking_callbacks.huggingface.classifier_curves import curves_of, per_class_statistics, probabilities_of
from tracking_callbacks.huggingface.reports import Report, TaskReport
from tracking_callbacks.huggingface.trainer_datasets import label_of, readable_row, row_order, rows_of

__all__ = ["log_report"]

logger = logging.getLogger(__name__)

_MOST_ROWS = 200


def log_report(run: Run, report: Report, prefix: str, step: int, folder: str, given: Mapping[str, Any]) -> None:
    """Log the report of one evaluation.

    Args:
        run: The run.
        report: The report.
        prefix: The evaluation's ``metric_key_prefix``.
        step: Training step.
        folder: The evaluation's folder among the artifacts.
        given: What ``Trainer`` passed to the hook.
    """
    note = f"{prefix or 'evaluation'}, step {step}"
    if isinstance(report, TaskReport):
        run.record("reports", lambda: run.log_dict(report.content, f"{folder}/{report.kind}.json"))
        run.draw(report.kind, folder, json.dumps(report.content), note=note)
    if not isinstance(report, ClassificationReport):
        return
    counts = {"labels": report.labels, "matrix": report.matrix}
    run.record("reports", lambda: run.log_text(report.table, f"{folder}/classification_report.txt"))
    run.record("reports", lambda: run.log_dict(counts, f"{folder}/confusion_matrix.json"))
    run.draw("confusion_matrix", folder, json.dumps(counts), note=note)
    run.record("reports", lambda: _log_classes(run, report, prefix, step))
    run.record("reports", lambda: _log_curves(run, report, prefix, step, folder, note))
    run.record("sample_rows", lambda: _log_errors(run, report, folder, given))


@never_in_the_way
def _log_classes(run: Run, report: ClassificationReport, prefix: str, step: int) -> None:
    group = grouped_name("x", prefix or None).rpartition("/")[0]
    statistics = per_class_statistics(report.matrix, report.labels)
    run.log_metrics(
        {f"{group}/class/{label}/{name}": one[name] for label, one in statistics.items() for name in one}, step
    )


@never_in_the_way
def _log_curves(run: Run, report: ClassificationReport, prefix: str, step: int, folder: str, note: str) -> None:
    if report.scores is None:
        return
    curves = curves_of(report.references, report.scores, report.labels)
    if curves is None:
        return
    values = {"ece": curves["calibration"]["ece"]}
    if curves["roc"]:
        values["roc_auc"] = float(np.mean([one["auc"] for one in curves["roc"].values()]))
        precisions = [one["average_precision"] for one in curves["precision_recall"].values()]
        values["average_precision"] = float(np.mean(precisions))
    run.log_metrics({grouped_name(name, prefix or None): value for name, value in values.items()}, step)
    run.log_dict(curves, f"{folder}/curves.json")
    run.draw("classifier_curves", folder, json.dumps(curves), note=note)


@never_in_the_way
def _log_errors(run: Run, report: ClassificationReport, folder: str, given: Mapping[str, Any]) -> None:
    """Log a table of rows: first the errors that the model was most sure of, then what it was least sure of."""
    dataset = rows_of(given.get("eval_dataloader"))
    if report.scores is None or dataset is None or len(dataset) != len(report.references):
        return
    probabilities = probabilities_of(report.scores)
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = predicted != report.references
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))[:_MOST_ROWS]
    losses = -np.log(np.maximum(probabilities[np.arange(len(predicted)), report.references], 1e-12))
    tokenizer, places = given.get("processing_class"), row_order(given["eval_dataloader"])
    rows = []
    for index in order.tolist():
        row = dataset[places[index]]
        if label_of(row) not in (None, int(report.references[index])):
            logger.info("no table of errors: the evaluation read its rows in an order that is not known")
            return
        rows.append(
            {
                "text": shortened(_text_of(readable_row(row, tokenizer=tokenizer, labels={}))),
                "label": report.labels[int(report.references[index])],
                "prediction": report.labels[int(predicted[index])],
                "probability": round(float(confidence[index]), 4),
                "loss": round(float(losses[index]), 4),
                "row": places[index],
            }
        )
    run.log_table(rows, f"{folder}/errors.json")


def _text_of(row: Mapping[str, Any]) -> str:
    if isinstance(text := row.get("text"), str):
        return text
    return " | ".join(value for value in row.values() if isinstance(value, str))
