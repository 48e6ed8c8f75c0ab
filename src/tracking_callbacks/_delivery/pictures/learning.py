"""Draws learning curves: loss, accuracy, F1 and the other evaluation metrics over the training steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracking_callbacks._delivery.pictures.canvas import (
    ANYTHING,
    PALETTE,
    Panel,
    Pen,
    draw_curve,
    finish,
    label_axes,
    new_figure,
    shorten,
)
from tracking_callbacks._delivery.pictures.series import Series, by_step, with_gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

__all__ = ["learning_curves"]

Points = Sequence[tuple[int, float]]
Curves = Mapping[str, tuple[Series, Series]]  # steps and values by the set that they were measured on

MAX_PANELS = 6  # below the loss
_FEW = 2  # an evaluation set with so many points is drawn without a line, and the legend says so
SMOOTHED = 60  # a series of more points has a running mean
LOG_SPAN = 100.0  # a loss that spans two orders of magnitude is drawn on a logarithmic axis

_FIRST = ("accuracy", "f1")
_NAMES = {"f1": "F1", "f1_weighted": "F1 (weighted)"}
# Groups that are not training or evaluation sets, and metrics of an evaluation that say nothing about the model.
_OTHER_GROUPS = {"system", "episode", "rollout", "time"}
_NOT_LEARNED = {
    *("epoch", "runtime", "samples_per_second", "steps_per_second", "num_tokens", "num_input_tokens_seen"),
    *("model_preparation_time", "jit_compilation_time", "total_flos", "mean_loss"),
}
_SET_MARKS = ("loss", "runtime")
_NO_LOSS = 1e-30  # below this, another order of magnitude means nothing
_EXPLAINED = 3  # with more running means than this, the legend leaves out the faint lines under them
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", ":", "-.")


def learning_curves(points: Mapping[str, Points], *, step: str = "training step") -> Figure | None:
    """Draw the loss over the steps of a training run, and below it a panel for each further evaluation metric.

    A colour always means a set: blue is the training set, orange-red the first evaluation set. Accuracy and F1 come
    first, then the others in their order in `points`, at most `MAX_PANELS`. Apart from the loss, accuracy and F1, a
    training metric is drawn only if an evaluation has it too. The loss has a logarithmic axis if it is positive
    throughout and spans a factor of `LOG_SPAN`. A series of more than `SMOOTHED` points is drawn faintly under its
    running mean; values that are not finite are crosses at the bottom.

    Args:
        points: Pairs (training step, value) by metric name as in a run, in the order of logging: ``train/loss``,
            ``eval/loss``, ``eval/accuracy``, ``eval/<set>/loss``, …; all other metrics of the run may be among them.
            Of several values at one step the last one is drawn.
        step: What a step is called, in the singular: "environment step" for Stable-Baselines3.

    Returns:
        The figure, or None if `points` have neither a loss nor an evaluation metric.
    """
    curves = _curves(points)
    if not curves:
        return None
    pens = _pens(curves)
    metrics = [metric for metric in curves if metric != "loss"][:MAX_PANELS]
    rows = (len(metrics) + 1) // 2
    has_loss = "loss" in curves
    steps = _step_range(curves[metric] for metric in ["loss"] * has_loss + metrics)
    heights = [3.6 if metrics else 4.6] * has_loss + [2.4] * rows
    figure = new_figure(sum(heights) + 0.5)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if has_loss:
        _draw_panel(figure, grid[0, :], "loss", curves["loss"], pens, steps, step, small=False)
    for index, metric in enumerate(metrics):
        row = has_loss + index // 2
        place = grid[row, index % 2] if len(metrics) > 1 else grid[row, :]
        _draw_panel(figure, place, metric, curves[metric], pens, steps, step, small=len(metrics) > 1)
    return finish(figure)


def _draw_panel(
    figure: Figure,
    place: SubplotSpec,
    metric: str,
    curves: Curves,
    pens: Mapping[str, Pen],
    steps: tuple[float, float],
    step: str,
    *,
    small: bool,
) -> None:
    axes = figure.add_subplot(place)
    explained = sum(x.size > SMOOTHED for x, _ in curves.values()) <= _EXPLAINED
    for name in sorted(curves, key=list(pens).index):
        x, y = curves[name]
        shown = shorten(name, 48)
        window = min(3 + y.size // 25, 500) if y.size > SMOOTHED else 0
        label = shown if not window else f"{shown} (each logged value)" if explained else "_"
        mean_label = f"{shown} (running mean over {window} values)"
        pen = pens[name]
        if x.size == _FEW and name != "train":  # a line between them would look like a measured course
            pen = Pen(pen.color, pen.marker, "none")
            label = f"{shown} (only {_FEW} evaluations)"
        draw_curve(axes, x, y, pen=pen, label=label, window=window, mean_label=mean_label)
    values = np.concatenate([with_gaps(values) for _, values in curves.values()])
    known = values[~np.isnan(values)]
    share = metric != "loss" and known.size > 0 and known.min() >= 0.0 and known.max() <= 1.0
    log = metric == "loss" and known.size > 0 and known.min() > _NO_LOSS and known.min() * LOG_SPAN <= known.max()
    name = _NAMES.get(metric, metric.replace("_", " "))
    title = f"{name[:1].upper()}{name[1:]}"
    panel = Panel(
        title=title if small else f"{title} over {step}s", x=step, y=f"{name} (logarithmic scale)" if log else name
    )
    label_axes(axes, panel, small=small, log=log, steps=steps, bounds=(0.0, 1.0) if share else ANYTHING)


def _curves(points: Mapping[str, Points]) -> dict[str, dict[str, tuple[Series, Series]]]:
    """Return steps and values by metric and then by the set they were measured on; loss, accuracy and F1 first."""
    sets = {name.rpartition("/")[0] for name in points if name.rpartition("/")[2] in _SET_MARKS}
    sets |= {name.partition("/")[0] for name in points if "/" in name}
    found: dict[str, dict[str, tuple[Series, Series]]] = {}
    for name, pairs in points.items():
        measured_on = max((s for s in sets if name.startswith(f"{s}/")), key=len, default="")
        metric = name[len(measured_on) + 1 :]
        root = measured_on.partition("/")[0]
        if len(pairs) and measured_on and root not in _OTHER_GROUPS and metric not in _NOT_LEARNED:
            found.setdefault(metric, {})[measured_on] = by_step(pairs)
    order = ["loss", *_FIRST, *found]
    return {
        metric: found[metric]
        for metric in dict.fromkeys(order)
        if metric in found and (metric in order[:3] or found[metric].keys() - {"train"})
    }


def _step_range(panels: Iterable[Curves]) -> tuple[float, float]:
    edges = [steps[[0, -1]] for curves in panels for steps, _ in curves.values()]
    return float(np.min(edges)), float(np.max(edges))


def _pens(curves: Mapping[str, Mapping[str, object]]) -> dict[str, Pen]:
    """Return a pen for every set, the training set first."""
    evaluations = dict.fromkeys(name for by_set in curves.values() for name in by_set if name != "train")
    pens = {"train": Pen(PALETTE[0], _MARKERS[0])}
    for index, name in enumerate(evaluations):
        color = 1 + index % (len(PALETTE) - 1)
        dash = _DASHES[index // (len(PALETTE) - 1) % len(_DASHES)]
        pens[name] = Pen(PALETTE[color], _MARKERS[color], dash)
    return pens
