"""Draws account value and drawdown over the steps of an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from tracking_callbacks._delivery.pictures.canvas import (
    MAX_POINTS,
    PALETTE,
    Panel,
    Pen,
    draw_line,
    finish,
    label_axes,
    new_figure,
    shorten,
)
from tracking_callbacks._delivery.pictures.series import Series, as_series, envelope, with_gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_CURVES", "drawdown", "equity_curves"]

MAX_CURVES = len(PALETTE)


def equity_curves(curves: Mapping[str, ArrayLike], steps: Mapping[str, ArrayLike] | None = None) -> Figure | None:
    """Draw the account value of episodes, and below it how far each is under its peak so far.

    The drawdown area of the newest episode is filled. The legend shows each episode's total return and largest
    drawdown.

    Args:
        curves: Account values, shape (n,), one at the reset and one after each step, in any unit, by the name of the
            episode, such as "last episode". Oldest first; of more than `MAX_CURVES` the last ones are drawn. A value
            that is not finite becomes a gap; an episode with fewer than two values is left out.
        steps: The episode steps of the values, by the name of the episode. None means 0, 1, 2, …

    Returns:
        The figure, or None if no episode is left.

    Raises:
        ValueError: A series is not one-dimensional.
    """
    values = {name: with_gaps(as_series(equity, name)) for name, equity in curves.items()}
    drawn = [(name, equity) for name, equity in values.items() if np.count_nonzero(~np.isnan(equity)) > 1]
    if not drawn:
        return None
    figure = new_figure(6.6)
    above, below = figure.subplots(2, 1, height_ratios=[1.7, 1.0])
    drawn = drawn[-MAX_CURVES:]
    for age, (name, equity) in reversed(list(enumerate(reversed(drawn)))):
        pen, newest = Pen(PALETTE[age]), age == 0
        known = np.arange(equity.size) if steps is None else steps[name]
        x = np.asarray(known, dtype=np.float64)
        fallen = drawdown(equity)
        label = f"{shorten(name, 32)}{_statistics(equity, fallen)}"
        draw_line(above, x, equity, pen=pen, label=label, markers=True, width=1.8 if newest else 1.1)
        draw_line(below, x, 100.0 * fallen, pen=pen, label="_", width=1.0)
        if newest:  # several fills would hide each other
            shown, y = envelope(x, 100.0 * fallen, MAX_POINTS)
            below.fill_between(shown, y, 0.0, color=pen.color, alpha=0.25, linewidth=0.0)
    label_axes(above, Panel("Equity curve: account value over the episode", "step of the episode", "account value"))
    label_axes(
        below,
        Panel("Drawdown: loss since the highest value so far", "step of the episode", "below the peak (%)"),
        bounds=(-math.inf, 0.0),
    )
    return finish(figure)


def drawdown(equity: Series) -> Series:
    """Return ``V / running_max(V) - 1`` of account values ``V``, shape (n,), NaN where the peak is not positive.

    If all values are positive, its minimum is ``finance.max_drawdown`` of the returns.
    """
    peak = np.fmax.accumulate(equity)
    fallen = np.full(equity.shape, np.nan)
    np.divide(equity - peak, peak, out=fallen, where=peak > 0.0)
    return fallen


def _statistics(equity: Series, fallen: Series) -> str:
    """Return the statistics as the curves show them, even for an account that falls below zero, unlike `finance`."""
    known = equity[~np.isnan(equity)]
    if known[0] <= 0.0:
        return ""
    total, worst = known[-1] / known[0] - 1.0, -np.nanmin(fallen)
    return f": return {total:+,.1%}, largest drawdown {abs(worst):,.1%}".replace("-", "−")
