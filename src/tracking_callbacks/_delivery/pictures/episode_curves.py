"""Draws curves of a reinforcement learning run with one value per episode: reward, length, Sharpe ratio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from tracking_callbacks._delivery.pictures.canvas import (
    FAINT_INK,
    Panel,
    Pen,
    draw_curve,
    draw_line,
    finish,
    label_axes,
    new_figure,
)
from tracking_callbacks._delivery.pictures.series import Series, as_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["episode_curves", "episode_window", "sharpe_curve"]

SMOOTHED = 30  # least number of episodes for a running mean
TIMESTEPS = "environment steps (timesteps)"


def episode_curves(timesteps: ArrayLike, rewards: ArrayLike, lengths: ArrayLike) -> Figure | None:
    """Draw the reward and length of every episode, and their running means, over the training steps.

    Args:
        timesteps: Steps over all environments when each episode ended, shape (n,), in any order.
        rewards: Sum of each episode's raw rewards, shape (n,), in the environment's unit. A value that is not finite
            becomes a gap.
        lengths: Steps of each episode, shape (n,).

    Returns:
        The figure, or None if there are no episodes.

    Raises:
        ValueError: The three are not one-dimensional series of equal length.
    """
    steps, (reward, length) = _in_order(timesteps, {"rewards": rewards, "lengths": lengths})
    if not steps.size:
        return None
    figure = new_figure(6.6)
    above, below = figure.subplots(2, 1, height_ratios=[1.4, 1.0])
    for axes, values in ((above, reward), (below, length)):
        _draw_episodes(axes, steps, values)
    label_axes(above, Panel("Reward per episode", TIMESTEPS, "sum of rewards"))
    label_axes(below, Panel("Length of the episodes", TIMESTEPS, "steps in the episode"), bounds=(0.0, math.inf))
    return finish(figure)


def sharpe_curve(
    timesteps: ArrayLike, ratios: ArrayLike, *, periods_per_year: float | None = None, source: str = ""
) -> Figure | None:
    """Draw the Sharpe ratio of every episode, and its running mean, over the training steps.

    Args:
        timesteps: Steps over all environments when each episode ended, shape (n,), in any order.
        ratios: Each episode's annualised Sharpe ratio, shape (n,); NaN if it has none.
        periods_per_year: Periods per year used for annualising (param ``sharpe.periods_per_year``).
        source: Where the returns come from (param ``sharpe.source``).

    Returns:
        The figure, or None if no episode has a ratio.

    Raises:
        ValueError: The two are not one-dimensional series of equal length.
    """
    steps, (ratio,) = _in_order(timesteps, {"ratios": ratios})
    known = np.isfinite(ratio)
    if not known.any():
        return None
    remarks = [f"returns: {source}"] * bool(source)
    if periods_per_year is not None:
        remarks.append(f"{periods_per_year:,.10g} periods a year")
    if not known.all():
        remarks.append(f"{np.count_nonzero(~known):,} of {known.size:,} episodes have no ratio")
    steps, ratio = steps[known], ratio[known]
    figure = new_figure(4.6)
    axes = figure.add_subplot()
    draw_line(axes, steps[[0, -1]], np.zeros(2), pen=Pen(FAINT_INK, dash="--"), label="_zero", width=1.0, zorder=1.5)
    _draw_episodes(axes, steps, ratio)
    label_axes(axes, Panel("Sharpe ratio per episode", TIMESTEPS, "Sharpe ratio (annualised)", "; ".join(remarks)))
    return finish(figure)


def episode_window(episodes: int) -> int:
    """Return the number of episodes in the running mean, or 0 if there are too few for one.

    It is a tenth of all episodes, up to 100, the window of SB3's own means. Above 20 000 episodes it is a 200th, up to
    1 000, so that the mean is still readable as a line.
    """
    return max(min(episodes // 10, 100), min(episodes // 200, 1_000)) if episodes >= SMOOTHED else 0


def _draw_episodes(axes: Axes, steps: Series, values: Series) -> None:
    window = episode_window(steps.size)
    mean_label = f"running mean over {window:,} episodes"
    draw_curve(axes, steps, values, pen=Pen(), label="each episode", window=window, mean_label=mean_label)


def _in_order(timesteps: ArrayLike, columns: dict[str, ArrayLike]) -> tuple[Series, list[Series]]:
    steps = as_series(timesteps, "timesteps")
    series = [as_series(values, name) for name, values in columns.items()]
    for name, values in zip(columns, series, strict=True):
        if values.size != steps.size:
            raise ValueError(f"{name}: expected one per timestep, {steps.size}, got {values.size}")
    order = np.argsort(steps, kind="stable")
    return steps[order], [values[order] for values in series]
