"""How sure a Sharpe ratio is: its standard error, and the probability that it is more than luck or selection.

Sources: A. W. Lo, "The Statistics of Sharpe Ratios", Financial Analysts Journal 58 (4), 2002; D. H. Bailey and
M. López de Prado, "The Sharpe Ratio Efficient Frontier", Journal of Risk 15 (2), 2012, and "The Deflated Sharpe Ratio",
The Journal of Portfolio Management 40 (5), 2014.

All of them assume that returns are independent of each other. Where they are not, for example in smoothed prices, the
true error is larger. Where an agent trades the same data several times, `observations` says how many of the returns are
independent: ``n`` in these formulas is the length of the track record, and a repetition does not lengthen it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from tracking_callbacks._values.selection import expected_maximum_sharpe, probability_above
from tracking_callbacks.finance import ratios

__all__ = [
    "deflated_sharpe_ratio",
    "expected_maximum_sharpe",
    "probabilistic_sharpe_ratio",
    "sharpe_standard_error",
]


def sharpe_standard_error(
    returns: ArrayLike, *, periods_per_year: float = 252, normal: bool = True, observations: int | None = None
) -> float | None:
    """Return the standard error of the annualised Sharpe ratio, ``sqrt(periods_per_year * (1 + SR**2 / 2) / n)``.

    ``SR`` is the ratio per period. This is Lo's result for independent, normally distributed returns (2002, eq. 9).

    Args:
        returns: Simple returns per period, shape (n,).
        periods_per_year: Periods in a year, as for `ratios.sharpe_ratio`.
        normal: Take the returns as normally distributed. False means with their own skew and kurtosis, which is 3 for
            the normal distribution: ``sqrt(periods_per_year * (1 - skew * SR + (kurtosis - 1) / 4 * SR**2) / (n - 1))``
            (Bailey and López de Prado 2012, equation 8).
        observations: Number of independent returns, ``n``. None means that all of them are.

    Returns:
        The standard error, or None where the ratio is undefined, or fewer than three returns are known and `normal` is
        False.
    """
    moments = _moments(returns, observations)
    if moments is None:
        return None
    count, ratio, skew, kurtosis = moments
    if normal:
        return math.sqrt(periods_per_year * (1.0 + ratio**2 / 2.0) / count)
    spread = 1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2
    return math.sqrt(periods_per_year * spread / (count - 1)) if count > 2 and spread > 0.0 else None


def probabilistic_sharpe_ratio(
    returns: ArrayLike,
    *,
    benchmark_sharpe: float = 0.0,
    periods_per_year: float = 252,
    observations: int | None = None,
) -> float | None:
    """Return the probability that the true Sharpe ratio is above `benchmark_sharpe`.

    ``Φ((SR - SR*) / error)`` with the standard error for returns that are not normally distributed, see
    `sharpe_standard_error` (Bailey and López de Prado 2012, equation 11).

    Args:
        returns: Simple returns per period, shape (n,).
        benchmark_sharpe: An annualised Sharpe ratio.
        periods_per_year: Periods in a year, as for `ratios.sharpe_ratio`.
        observations: Number of independent returns. None means that all of them are.

    Returns:
        From 0.0 to 1.0, or None where the ratio is undefined or fewer than three returns are known.
    """
    ratio = ratios.sharpe_ratio(returns, periods_per_year=periods_per_year)
    error = sharpe_standard_error(returns, periods_per_year=periods_per_year, normal=False, observations=observations)
    return None if ratio is None or error is None else probability_above(benchmark_sharpe, ratio, error)


def deflated_sharpe_ratio(
    returns: ArrayLike,
    *,
    trials: int,
    deviation: float | None = None,
    periods_per_year: float = 252,
    observations: int | None = None,
) -> float | None:
    """Return the probability that the true Sharpe ratio is above what the best of `trials` reaches by luck.

    This is `probabilistic_sharpe_ratio` against `expected_maximum_sharpe` (Bailey and López de Prado 2014, equation 2).

    Args:
        returns: Simple returns per period of the best trial, shape (n,).
        trials: Number of independent trials that it was chosen from.
        deviation: Standard deviation of the trials' annualised Sharpe ratios. None means that of the estimates of a
            ratio of zero from as many returns, ``sqrt(periods_per_year / (n - 1))``.
        periods_per_year: Periods in a year, as for `ratios.sharpe_ratio`.
        observations: Number of independent returns, ``n``. None means that all of them are.

    Returns:
        From 0.0 to 1.0, or None where the ratio is undefined.
    """
    moments = _moments(returns, observations)
    if moments is None:
        return None
    spread = math.sqrt(periods_per_year / (moments[0] - 1)) if deviation is None else deviation
    luck = expected_maximum_sharpe(trials, spread)
    return probabilistic_sharpe_ratio(
        returns, benchmark_sharpe=luck, periods_per_year=periods_per_year, observations=observations
    )


def _moments(returns: ArrayLike, observations: int | None) -> tuple[int, float, float, float] | None:
    """Return the number of independent returns, the Sharpe ratio per period, skew and kurtosis (3.0 if normal)."""
    series = np.asarray(returns, dtype=np.float64)
    series = series[~np.isnan(series)]
    count = series.size if observations is None else min(observations, series.size)
    ratio = ratios.sharpe_ratio(series, periods_per_year=1)
    if ratio is None or count < 2:
        return None
    deviations = series - series.mean()
    variance = float(np.mean(deviations**2))
    return (
        count,
        ratio,
        float(np.mean(deviations**3)) / variance**1.5,
        float(np.mean(deviations**4)) / variance**2,
    )
