"""Prepares series for drawing: sorts, marks gaps, smooths, thins to what a picture can show. Pure numpy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Series", "as_series", "by_step", "envelope", "isolated", "read_columns", "running_mean", "with_gaps"]

Series = NDArray[np.float64]

# MLflow stores ±inf as ±1.797e308. No value beyond this limit is a measurement, and sums of values below it do not
# overflow.
_INFINITE = 1e300


def as_series(values: ArrayLike, name: str) -> Series:
    """Return `values` as floats of shape (n,).

    Raises:
        ValueError: They are not one-dimensional; the message calls them `name`.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"{name}: expected a one-dimensional series, got shape {series.shape}")
    return series


def by_step(points: Iterable[tuple[float, float]]) -> tuple[Series, Series]:
    """Return the steps of `points` in ascending order and their values, both of shape (n,).

    Of several values at one step the last one counts, because a resumed training run repeats the steps since its
    checkpoint.
    """
    latest = dict(points)
    steps = np.fromiter(latest, dtype=np.float64, count=len(latest))
    values = np.fromiter(latest.values(), dtype=np.float64, count=len(latest))
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def with_gaps(values: Series) -> Series:
    """Return a copy of `values` in which every value that is not finite is NaN."""
    return np.where(np.abs(values) < _INFINITE, values, np.nan)


def running_mean(values: Series, window: int) -> Series:
    """Return the mean of the `window` values around every position, shape (n,).

    The window is centred, so that the mean does not lag behind the values, and shorter near the ends. NaN is ignored;
    the mean of a window with nothing else is NaN. Each window is summed separately, because differences of a cumulative
    sum would carry the rounding error of one large value through the rest of the curve.
    """
    if not values.size:
        return values.copy()
    known = ~np.isnan(values)
    ones = np.ones(min(window, values.size))
    centre = slice(ones.size // 2, ones.size // 2 + values.size)
    counts = np.convolve(known, ones)
    sums = np.convolve(np.where(known, values, 0.0), ones)
    means = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0.5)
    return means[centre]


def envelope(x: Series, y: Series, limit: int) -> tuple[Series, Series]:
    """Return at most `limit` of the points: the first, the last, and the extremes of equal stretches between them.

    Unlike taking every n-th point, this loses no spike, and keeps a gap (NaN) that is longer than a stretch.

    Args:
        x: Positions, shape (n,).
        y: Values, shape (n,).
        limit: Maximum number of points, at least 4.
    """
    count = y.size
    if count <= limit:
        return x, y
    size = -(-count // ((limit - 2) // 2))
    rows = -(-count // size)
    padded = np.full(rows * size, np.nan)
    padded[:count] = y
    table = padded.reshape(rows, size)
    gaps = np.isnan(table)
    starts = np.arange(rows) * size
    lowest = starts + np.where(gaps, np.inf, table).argmin(axis=1)
    highest = starts + np.where(gaps, -np.inf, table).argmax(axis=1)
    chosen = np.unique(np.concatenate([[0], lowest, highest, [count - 1]]))
    return x[chosen], y[chosen]


def isolated(values: Series) -> list[int]:
    """Return the positions of single numbers between two gaps, which a line alone would not show."""
    gaps = np.concatenate([[True], np.isnan(values), [True]])
    return np.flatnonzero(gaps[:-2] & ~gaps[1:-1] & gaps[2:]).tolist()


def read_columns(lines: Iterable[str]) -> dict[str, Series]:
    """Return the columns of a CSV table of numbers, such as ``episodes.csv`` or ``equity_curves.csv``, by their names.

    Args:
        lines: The lines, starting with a header: an open file, or ``text.splitlines()``.

    Returns:
        Series of equal length; NaN if a cell is empty or is not a number. A last line that was cut short is left out.
    """
    table = csv.reader(lines)
    names = next(table, [])
    rows = [row for row in table if len(row) == len(names)]
    return {name: _numbers([row[column] for row in rows]) for column, name in enumerate(names)}


def _numbers(cells: Sequence[str]) -> Series:
    return np.array([_number(cell) for cell in cells], dtype=np.float64)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan
