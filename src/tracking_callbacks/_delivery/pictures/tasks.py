"""How near predicted numbers are to the true ones, and how well each label or kind of entity is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking_callbacks._delivery.pictures.canvas import (
    FAINT_INK,
    GRID,
    INK,
    PALETTE,
    add_note,
    finish,
    frame,
    linear_ticks,
    new_figure,
    number_texts,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["regression_errors", "score_bars"]

_SCORES = {"precision": "precision", "recall": "recall", "f1": "F1"}


def regression_errors(content: Mapping[str, Any], *, note: str = "") -> Figure | None:
    """Draw predicted against true values, and the error of each prediction.

    Args:
        content: As ``regression.json`` holds it.
        note: A line under the first title, such as "eval, step 400".

    Returns:
        The figure, or None if no pair of values is finite.
    """
    true, predicted = (np.asarray(content[name], dtype=np.float64) for name in ("true", "predicted"))
    known = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[known], predicted[known]
    if not true.size:
        return None
    figure = new_figure(4.4, width=10.4)
    against, errors = figure.subplots(1, 2)
    alpha = 0.7 if true.size < 200 else 0.35
    looks: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0, "alpha": alpha}
    against.plot(true, predicted, color=PALETTE[0], **looks)
    errors.plot(predicted, predicted - true, color=PALETTE[0], **looks)
    against.axline((float(true[0]), float(true[0])), slope=1, color=FAINT_INK, linewidth=1, linestyle="--")
    errors.axhline(0.0, color=FAINT_INK, linewidth=1, linestyle="--")
    both = np.concatenate([true, predicted])
    shown = f"{true.size:,} of {content['rows']:,} rows" if true.size < content["rows"] else f"{true.size:,} rows"
    _label(against, "Predicted and true values", ("true value", both), ("predicted value", both))
    add_note(against, f"{note}; {shown}" if note else shown)
    _label(errors, "Errors", ("predicted value", predicted), ("predicted − true value", predicted - true))
    mean, deviation = float(np.mean(predicted - true)), float(np.std(predicted - true))
    add_note(errors, f"mean {mean:.3g}, standard deviation {deviation:.3g}".replace("-", "−"))
    return finish(figure, legend=False)


def _label(axes: Axes, title: str, x: tuple[str, Any], y: tuple[str, Any]) -> None:
    frame(axes)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    for (text, values), axis in ((x, axes.xaxis), (y, axes.yaxis)):
        low, high = float(np.min(values)), float(np.max(values))
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ticks = linear_ticks(low - margin, high + margin, count=6)
        axis.set_ticks(ticks, labels=number_texts(ticks))
        axis.set_view_interval(low - margin, high + margin, ignore=True)
        axis.set_label_text(text, fontsize=10, color=INK)


def score_bars(content: Mapping[str, Any], *, note: str = "") -> Figure | None:
    """Draw precision, recall and F1 of each label or kind of entity.

    Args:
        content: As ``scores.json`` holds it.
        note: A line under the title, such as "eval, step 400".

    Returns:
        The figure, or None if there is no name.
    """
    scores = content["scores"]
    if not scores:
        return None
    figure = new_figure(2.0 + 0.62 * len(scores))
    axes = figure.subplots()
    places = np.arange(len(scores))
    for at, (name, text) in enumerate(_SCORES.items()):
        values = [one[name] for one in scores.values()]
        bars = axes.barh(places + 0.26 * (at - 1), values, height=0.24, color=PALETTE[at], label=text)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
    frame(axes)
    axes.set_yticks(places, [f"{shorten(name, 24)} ({one['support']:,.0f})" for name, one in scores.items()])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.1f}" for tick in np.linspace(0, 1, 6)])
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("score", fontsize=10, color=INK)
    axes.set_ylabel("name (how often it occurs)", fontsize=10, color=INK)
    axes.set_title("Precision, recall and F1", loc="left", fontsize=13, fontweight="bold", color=INK, pad=20)
    more = f"the {len(scores)} most common of {content['names']}" if content["names"] > len(scores) else ""
    add_note(axes, "; ".join(part for part in (note, more) if part))
    return finish(figure)
