"""Logs what lies behind the numbers of an evaluation: report, confusion matrix, curves, and the rows it got wrong."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from tracking_callbacks._callbacks.dataset_inputs import shortened
from tracking_callbacks._callbacks.description import evaluation_folder, role_name
from tracking_callbacks._callbacks.metric_names import grouped_name
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.huggingface.classification import ClassificationReport
from tracking_callbacks.huggingface.classifier_curves import curves_of, per_class_statistics, probabilities_of
from tracking_callbacks.huggingface.metric_names import evaluation_prefix
from tracking_callbacks.huggingface.reports import Report, TaskReport, take_report
from tracking_callbacks.huggingface.trainer_datasets import (
    label_of,
    log_dataset_of,
    readable_row,
    row_order,
    rows_of,
)

__all__ = ["EvaluationLogger"]

logger = logging.getLogger(__name__)

_MOST_ROWS = 200


class EvaluationLogger:
    """Logs for one callback what its evaluations were made from: each report, and each dataset once per run."""

    def __init__(self) -> None:
        self._reports: Counter[tuple[str, str]] = Counter()
        self._inputs: set[tuple[str, str]] = set()

    def log_report(self, run: Run, metrics: Mapping[str, Any], step: int, given: Mapping[str, Any]) -> None:
        """Log the report behind the numbers of an evaluation, if ``compute_metrics`` has left one.

        Args:
            run: The run.
            metrics: What the hook received.
            step: Training step.
            given: What else ``Trainer`` passed to the hook.
        """
        prefix = evaluation_prefix(metrics) or ""
        report = take_report(metrics, prefix)
        if report is None:
            return
        folder = evaluation_folder(prefix or "unnamed", step)
        self._reports[run.run_key, folder] += 1
        if (count := self._reports[run.run_key, folder]) > 1:  # another evaluation at this step has its own report
            folder += f"-{count}"
        _log_report(run, report, prefix, step, folder, given)

    def log_input(self, run: Run, role: str, context: str, given: Mapping[str, Any]) -> None:
        """Record the dataset of training or an evaluation, the first time that `run` uses it.

        Args:
            run: The run.
            role: What the training run calls the dataset.
            context: MLflow's name for what it is used for.
            given: What ``Trainer`` passed to the hook.
        """
        role = role_name(role)
        if (run.run_key, role) not in self._inputs:
            self._inputs.add((run.run_key, role))
            dataloader = given.get("train_dataloader" if context == "training" else "eval_dataloader")
            tokenizer, model = given.get("processing_class"), given.get("model")
            log_dataset_of(run, dataloader, role, context=context, tokenizer=tokenizer, model=model)


def _log_report(run: Run, report: Report, prefix: str, step: int, folder: str, given: Mapping[str, Any]) -> None:
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
