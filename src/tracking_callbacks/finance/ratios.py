"""Sharpe and Sortino ratio, drawdown, total return and volatility of a return series. Pure numpy.

Each function takes a one-dimensional series of *simple* returns (0.01 is one per cent), ignores NaN, and returns None
if the statistic is undefined: never inf, never a zero that looks like a measurement. A defined statistic equals that of
``empyrical`` (https://github.com/stefan-jansen/empyrical-reloaded) to 1e-9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "account_ratios",
    "looks_like_levels",
    "max_drawdown",
    "returns_from_equity",
    "sharpe_ratio",
    "sortino_ratio",
    "total_return",
    "volatility",
]

# Equal returns that were computed as quotients of account values differ by the rounding of 1 + r, a few units in the
# last place.
_ROUNDING = 16 * np.finfo(np.float64).eps


def returns_from_equity(equity: ArrayLike) -> NDArray[np.float64]:
    """Return the simple returns ``equity[t] / equity[t - 1] - 1`` of consecutive account values.

    Args:
        equity: Account values over time, shape (n,), in any unit (money, or a factor that starts at 1.0).

    Returns:
        Shape (n - 1,), empty for fewer than two values. A return on an account value of zero or less is meaningless
        and therefore NaN.
    """
    values = np.asarray(equity, dtype=np.float64)
    if values.size < 2:
        return np.empty(0)
    before, after = values[:-1], values[1:]
    if np.minimum.reduce(before) > 0.0:
        return np.subtract(quotients := after / before, 1.0, out=quotients)
    returns = np.full(before.shape, np.nan)
    np.divide(after, before, out=returns, where=before > 0.0)
    returns -= 1.0
    return returns


def account_ratios(series: NDArray[np.float64], *, periods_per_year: float = 252) -> dict[str, float]:
    """Return the Sharpe and Sortino ratio, drawdown, total return and volatility by name, those that are defined.

    They equal those of the functions below. They are computed together because every episode needs them at its end,
    where the calls cost more than the sums.

    Args:
        series: Simple returns per period, all of them finite, shape (n,).
        periods_per_year: Periods in a year, as for `sharpe_ratio`.
    """
    if not series.size:
        return {}
    wealth = (series + 1.0).cumprod()
    found = {"max_drawdown": _drawdown(wealth), "total_return": _finite_or_none(float(wealth[-1]) - 1.0)}
    if series.size > 1:
        mean, deviation = _mean_and_deviation(series)
        year = math.sqrt(periods_per_year)
        found["sharpe_ratio"] = _quotient(year * mean, deviation)
        found["sortino_ratio"] = _quotient(year * mean, _downside_deviation(series))
        found["volatility"] = _finite_or_none(year * deviation)
    return {name: value for name, value in found.items() if value is not None}


def sharpe_ratio(returns: ArrayLike, *, periods_per_year: float = 252, risk_free: float = 0.0) -> float | None:
    """Return the annualised Sharpe ratio ``sqrt(periods_per_year) * mean(r - risk_free) / std(r, ddof=1)``.

    Args:
        returns: Simple returns per period, shape (n,).
        periods_per_year: 252 for daily bars, 365 * 24 for hourly crypto bars, …
        risk_free: The risk-free simple return *per period*.

    Returns:
        The ratio, or None for fewer than two returns, an infinite one, or returns that are equal up to rounding.

    Source: W. F. Sharpe, "The Sharpe Ratio", The Journal of Portfolio Management 21 (1), 1994.
    """
    series = _finite(returns)
    if series is None or series.size < 2:
        return None
    mean, deviation = _mean_and_deviation(series)
    return _quotient(math.sqrt(periods_per_year) * (mean - risk_free), deviation)


def sortino_ratio(returns: ArrayLike, *, periods_per_year: float = 252, required_return: float = 0.0) -> float | None:
    """Return the annualised Sortino ratio ``sqrt(periods_per_year) * mean(r - m) / sqrt(mean(min(r - m, 0) ** 2))``.

    Args:
        returns: Simple returns per period, shape (n,).
        periods_per_year: Periods in a year, as for `sharpe_ratio`.
        required_return: The least acceptable simple return ``m`` per period.

    Returns:
        The ratio, or None for fewer than two returns, an infinite one, or if no return is below the required one.

    Source: F. A. Sortino and L. N. Price, "Performance Measurement in a Downside Risk Framework", The Journal of
    Investing 3 (3), 1994; the deviation is taken over all periods, as in https://www.cmegroup.com/education/files/
    rr-sortino-a-sharper-ratio.pdf.
    """
    series = _finite(returns)
    if series is None or series.size < 2:
        return None
    excess = series - required_return
    return _quotient(math.sqrt(periods_per_year) * float(excess.mean()), _downside_deviation(excess))


def looks_like_levels(series: ArrayLike) -> str:
    """Return why a series can hardly be one of returns, in words; empty if it may be.

    Returns scatter around a mean near zero and forget the last one. Account values and prices do neither: they are
    positive and far above their deviation, or they wander, so that the mean squared step is small against their
    variance (the ratio of J. von Neumann, The Annals of Mathematical Statistics 12 (4), 1941, which is 2 for
    independent values).

    Args:
        series: Any numbers, shape (n,).
    """
    values = _finite(series)
    if values is None or values.size < 3:
        return ""
    mean, deviation = _mean_and_deviation(values)
    if deviation == 0.0:
        return ""
    if values.min() > 0.0 and mean > 4.0 * deviation:
        return "all of them are positive and far above their deviation"
    steps = np.diff(values)
    if values.size >= 30 and float(np.dot(steps, steps)) < 0.25 * deviation**2 * (values.size - 1):
        return "they wander as account values or prices do"
    return ""


def max_drawdown(returns: ArrayLike) -> float | None:
    """Return the largest loss from a peak, ``min(V / running_max(V) - 1)``, with ``V = cumprod(1 + r)`` from 1.0.

    Args:
        returns: Simple returns per period, shape (n,).

    Returns:
        From 0.0 (never below the peak) down to -1.0 (everything lost), or lower if debt is possible. None if there are
        no returns, or an infinite one.

    Source: M. Magdon-Ismail and A. Atiya, "Maximum Drawdown", Risk 17 (10), 2004.
    """
    series = _finite(returns)
    if series is None or series.size == 0:
        return None
    return _drawdown((series + 1.0).cumprod())


def total_return(returns: ArrayLike) -> float | None:
    """Return the compounded return of the whole series, ``prod(1 + r) - 1``.

    Args:
        returns: Simple returns per period, shape (n,).

    Returns:
        The return, or None if there are no returns, or an infinite one.

    Source: C. R. Bacon, "Practical Portfolio Performance Measurement and Attribution", chapter 2.
    """
    series = _finite(returns)
    if series is None or series.size == 0:
        return None
    return _finite_or_none(float(np.prod(1.0 + series)) - 1.0)


def volatility(returns: ArrayLike, *, periods_per_year: float = 252) -> float | None:
    """Return the annualised standard deviation ``sqrt(periods_per_year) * std(r, ddof=1)``.

    Args:
        returns: Simple returns per period, shape (n,).
        periods_per_year: Periods in a year, as for `sharpe_ratio`.

    Returns:
        The volatility: 0.0 if all returns are equal up to rounding, None for fewer than two or an infinite one.

    Source: J. C. Hull, "Options, Futures, and Other Derivatives", "Estimating volatility from historical data".
    """
    series = _finite(returns)
    if series is None or series.size < 2:
        return None
    return _finite_or_none(math.sqrt(periods_per_year) * _mean_and_deviation(series)[1])


def _finite(returns: ArrayLike) -> NDArray[np.float64] | None:
    """Return `returns` without NaN, or None if one of them is infinite."""
    series = np.asarray(returns, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"expected a one-dimensional series of returns, got shape {series.shape}")
    if math.isfinite(series.sum()):  # one pass; NaN and inf both show in the sum
        return series
    series = series[~np.isnan(series)]
    return series if np.isfinite(series).all() else None


def _mean_and_deviation(series: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the sample deviation (ddof=1), which is 0.0 if it is only a rounding error.

    In floats, the deviation of equal values may be 1e-19 instead of 0, and a ratio to that can be any large number.
    """
    mean = float(series.sum()) / series.size
    deviations = series - mean
    deviation = math.sqrt(float(np.dot(deviations, deviations)) / (series.size - 1))
    return mean, 0.0 if deviation <= _ROUNDING * (1.0 + abs(mean)) else deviation


def _downside_deviation(excess: NDArray[np.float64]) -> float:
    shortfall = np.minimum(excess, 0.0)
    deviation = math.sqrt(float(np.dot(shortfall, shortfall)) / excess.size)
    return 0.0 if deviation <= _ROUNDING else deviation


def _drawdown(wealth: NDArray[np.float64]) -> float | None:
    peak = np.maximum.accumulate(wealth)
    np.maximum(peak, 1.0, out=peak)  # the account began with 1.0
    return _finite_or_none(float(np.minimum.reduce((wealth - peak) / peak)))


def _quotient(above: float, below: float) -> float | None:
    """Return the quotient, or None if it is undefined or overflows."""
    return None if below == 0.0 else _finite_or_none(above / below)


def _finite_or_none(value: float) -> float | None:
    """Return `value`, or None if it overflowed."""
    return float(value) if math.isfinite(value) else None
