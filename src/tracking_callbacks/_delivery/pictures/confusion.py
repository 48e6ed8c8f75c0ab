"""The confusion matrix of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracking_callbacks._delivery.pictures.canvas import FAINT_INK, GRID, INK, finish, frame, new_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_matrix"]

MAX_LABELS = 50  # names on each axis; with more classes only some are named

_WITH_SHARES, _WITH_COUNTS = 10, 25  # most classes for which cells show their share, and their count
_NO_SAMPLES = "#d9d9d9"


def confusion_matrix(labels: Sequence[str], matrix: ArrayLike, *, note: str = "") -> Figure | None:
    """Draw how often each class was predicted as which: counts in the cells, shaded by the share of the true class.

    With up to 10 classes a cell shows count and share, with up to 25 the count, and with more only the shade. Rows of
    classes without samples are grey.

    Args:
        labels: The classes' names, in the order of the matrix.
        matrix: Counts, shape (classes, classes): how often class ``i`` (row) was predicted as class ``j`` (column).
        note: A line under the title, such as "eval, step 400".

    Returns:
        The figure, or None if no sample was counted.

    Raises:
        ValueError: The matrix is not square or does not have one row per label, or a count is negative or not finite.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.size == 0 and not len(labels):
        return None
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(f"matrix: expected shape {(len(labels), len(labels))} for the labels, got {counts.shape}")
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError("matrix: expected counts of zero and more")
    total, right = counts.sum(), np.trace(counts)
    if total == 0:
        return None
    samples = counts.sum(axis=1, keepdims=True)
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, samples, out=shares, where=samples > 0)

    side = min(max(4.2, 0.62 * len(labels)), 8.5)
    names = _Names(labels, side)
    figure = new_figure(side + names.height + 1.2, width=max(side + names.width + 1.7, 6.6), compress=True)
    axes = figure.add_subplot()
    _draw_shades(figure, axes, shares)
    names.write(axes)
    if len(labels) <= _WITH_COUNTS:
        _write_counts(axes, counts, shares)
    accuracy = min(right / total, 1.0 if right == total else 0.999)  # show 100.0% only if there is no error
    title = f"Confusion matrix: accuracy {accuracy:.1%} ({right:,.0f} of {total:,.0f})"
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    remarks = [note] * bool(note) + ["grey: no samples of the class"] * bool(not samples.all())
    if remarks:
        axes.set_title(shorten("; ".join(remarks), 80), fontsize=9, fontweight="normal", color=FAINT_INK, pad=6)
    return finish(figure, legend=False)


def _draw_shades(figure: Figure, axes: Axes, shares: NDArray[np.float64]) -> None:
    from matplotlib import colormaps

    shades = colormaps["Blues"].with_extremes(bad=_NO_SAMPLES)
    image = axes.imshow(
        np.ma.masked_invalid(shares),
        cmap=shades,
        norm="linear",
        vmin=0.0,
        vmax=1.0,
        aspect="equal",
        interpolation="nearest",
        origin="upper",
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=30)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
    bar.set_label("share of the true class", fontsize=10, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=INK)


class _Names:
    """The classes' names along both axes of a matrix with sides of `side` inches.

    Attributes:
        width: Inches that they take up to the left of the matrix.
        height: Inches that they take up below it.
    """

    def __init__(self, labels: Sequence[str], side: float) -> None:
        self._places = list(range(0, len(labels), math.ceil(len(labels) / MAX_LABELS)))
        self._names = [shorten(labels[place], 24) for place in self._places]
        count = len(self._places)
        self._size = 10 if count <= 12 else 8.5 if count <= _WITH_COUNTS else 7
        self.width = 0.6 * self._size / 72 * max(map(len, self._names))
        if (self.width + 0.1) * count <= side:
            self._rotation, self.height = 0, 0.2
        elif count <= _WITH_COUNTS:
            self._rotation, self.height = 45, 0.75 * self.width
        else:
            self._rotation, self.height = 90, self.width

    def write(self, axes: Axes) -> None:
        frame(axes, labelsize=self._size)
        if self._rotation == 45:
            axes.set_xticks(self._places, self._names, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(self._places, self._names, rotation=self._rotation)
        axes.set_yticks(self._places, self._names)
        axes.grid(False)
        axes.set_xlabel("predicted class", fontsize=10, color=INK, labelpad=6)
        axes.set_ylabel("true class", fontsize=10, color=INK, labelpad=6)


def _write_counts(axes: Axes, counts: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
    few = len(counts) <= _WITH_SHARES
    edges, ends = np.arange(1, len(counts)) - 0.5, (-0.5, len(counts) - 0.5)
    axes.hlines(edges, *ends, color=GRID, linewidth=0.6)
    axes.vlines(edges, *ends, color=GRID, linewidth=0.6)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count:,.0f}\n{_percent(float(share))}" if few and not np.isnan(share) else f"{count:,.0f}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=10 if few else 8 if count < 1_000 else 6.5,
            color="white" if share > 0.55 else INK,
        )


def _percent(share: float) -> str:
    """Return `share` in whole per cent, where 0% and 100% mean exactly none and all."""
    if 0.0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1.0 else f"{share:.0%}"
