"""What lies behind the numbers of an evaluation, handed from ``compute_metrics`` to the callback."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Report", "TaskReport", "keep_report", "take_report"]


class Report(Protocol):
    """One evaluation: its statistics as returned to ``Trainer``, and whatever they were computed from."""

    @property
    def statistics(self) -> Mapping[str, float]:
        """Return ``accuracy``, ``f1`` and the others."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The report of an evaluation that is shown by one picture.

    Attributes:
        statistics: As returned to ``Trainer``.
        kind: The picture.
        content: What it is drawn from, as JSON can hold it.
    """

    statistics: Mapping[str, float]
    kind: Literal["regression", "scores"]
    content: Mapping[str, Any] = field(repr=False)


_latest = threading.local()  # trainers in several threads evaluate at the same time


def keep_report(report: Report) -> dict[str, float]:
    """Keep the report for the callback, and return its statistics."""
    _latest.report = report
    return dict(report.statistics)


def take_report(metrics: Mapping[str, Any], prefix: str) -> Report | None:
    """Return the report behind `metrics` and forget it, or return None if there is none.

    ``Trainer`` passes a callback the numbers of an evaluation and nothing else, so the latest report of each thread is
    kept. It belongs to this evaluation if all its statistics are among `metrics`.

    Args:
        metrics: What ``on_evaluate`` or ``on_predict`` received.
        prefix: The evaluation's ``metric_key_prefix``.
    """
    report: Report | None = getattr(_latest, "report", None)
    if report is None or not all(
        _same(metrics.get(f"{prefix}_{key}"), value) for key, value in report.statistics.items()
    ):
        return None
    _latest.report = None
    return report


def _same(found: Any, value: float) -> bool:
    return bool(found == value) or (isinstance(found, float) and math.isnan(found) and math.isnan(value))
