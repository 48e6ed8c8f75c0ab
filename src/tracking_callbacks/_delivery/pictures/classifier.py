"""How well a classifier separates the classes, and how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking_callbacks._delivery.pictures.canvas import (
    FAINT_INK,
    INK,
    PALETTE,
    add_note,
    finish,
    frame,
    new_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["classifier_curves"]


def classifier_curves(curves: Mapping[str, Any], *, note: str = "") -> Figure:
    """Draw ROC, precision-recall and calibration next to each other.

    Args:
        curves: As ``curves.json`` holds them.
        note: A line under the first title, such as "eval, step 400".
    """
    figure = new_figure(4.4, width=12.6)
    roc, precision, calibration = figure.subplots(1, 3)
    for at, (label, one) in enumerate(curves["roc"].items()):
        name = f"{shorten(label, 24)}, area {one['auc']:.3f}"
        roc.plot(one["fpr"], one["tpr"], color=PALETTE[at % len(PALETTE)], linewidth=1.6, label=name)
    for at, (label, one) in enumerate(curves["precision_recall"].items()):
        name = f"{shorten(label, 24)}, average {one['average_precision']:.3f}"
        precision.plot(one["recall"], one["precision"], color=PALETTE[at % len(PALETTE)], linewidth=1.6, label=name)
    reliability = curves["calibration"]
    counts = np.asarray(reliability["count"], dtype=np.float64)
    calibration.plot(reliability["confidence"], reliability["accuracy"], color=PALETTE[0], linewidth=1.2)
    sizes = 14 + 160 * counts / counts.max(initial=1.0)
    calibration.scatter(reliability["confidence"], reliability["accuracy"], s=sizes, color=PALETTE[0], zorder=3)
    for axes in (roc, calibration):
        axes.plot([0, 1], [0, 1], color=FAINT_INK, linewidth=0.8, linestyle="--")
    _name(roc, "ROC", "false positive rate", "true positive rate", note)
    _name(precision, "Precision and recall", "recall", "precision", "")
    error = f"expected calibration error {reliability['ece']:.3f}; larger dots have more rows"
    _name(calibration, "Calibration", "probability of the predicted class", "share that is right", error)
    return finish(figure, legend=False)


def _name(axes: Axes, title: str, x: str, y: str, note: str) -> None:
    frame(axes)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    if note:
        add_note(axes, note)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left" if "recall" in x else "lower right", fontsize=8, frameon=False)
