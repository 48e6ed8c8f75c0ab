"""The statistics of an account, alone and against a benchmark, by ``empyrical``."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracking_callbacks.finance import ratios

__all__ = ["performance"]

_TAIL = 0.05


def performance(
    returns: ArrayLike, *, benchmark: ArrayLike | None = None, periods_per_year: float = 252
) -> dict[str, float]:
    """Return the statistics of an account by name; a statistic that is undefined is left out.

    ==========================  =====================================================================================
    ``total_return``            compounded return of the whole series
    ``annual_return``           the same per year (compound annual growth rate)
    ``volatility``              annualised standard deviation
    ``sharpe_ratio``            see `ratios.sharpe_ratio`
    ``sortino_ratio``           see `ratios.sortino_ratio`
    ``calmar_ratio``            annual return over the largest drawdown (T. W. Young, Futures, October 1991)
    ``omega_ratio``             gains over losses around 0 (C. Keating and W. F. Shadwick, 2002)
    ``max_drawdown``            largest loss from a peak, negative
    ``max_drawdown_length``     most periods from a peak until it is reached again, or until the end
    ``value_at_risk_95``        5 % quantile of the returns (historical simulation)
    ``conditional_value_at_risk_95``  mean of the returns up to that quantile (R. T. Rockafellar and S. Uryasev, 2000)
    ``skew``                    third standardised moment of the sample (biased, as in ``scipy.stats.skew``)
    ``tail_ratio``              95 % quantile over the absolute 5 % quantile
    ==========================  =====================================================================================

    With a benchmark also ``benchmark_total_return``, ``benchmark_annual_return``, ``excess_return`` (total return above
    the benchmark's), ``alpha`` (annualised) and ``beta`` (M. C. Jensen, The Journal of Finance 23 (2), 1968), and
    ``information_ratio``, the annualised mean over the standard deviation (ddof=1) of the active returns (T. H.
    Goodwin, Financial Analysts Journal 54 (4), 1998).

    Args:
        returns: Simple returns per period, shape (n,). Periods in which either series is NaN are left out of both.
        benchmark: Simple returns of the benchmark in the same periods, shape (n,).
        periods_per_year: 252 for daily bars, 365 * 24 for hourly crypto bars, …

    Raises:
        ModuleNotFoundError: empyrical-reloaded is not installed.
        ValueError: The two series differ in length, or one has more than one dimension.
    """
    import empyrical

    account, market = _aligned(returns, benchmark)
    if account.size == 0:
        return {}
    year: dict[str, Any] = {"period": None, "annualization": periods_per_year}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of divisions by zero, whose results are left out
        found: dict[str, Any] = ratios.account_ratios(account, periods_per_year=periods_per_year) | {
            "annual_return": empyrical.annual_return(account, **year),
            "calmar_ratio": empyrical.calmar_ratio(account, **year),
            "omega_ratio": empyrical.omega_ratio(account),
            "max_drawdown_length": _longest_drawdown(account),
            "value_at_risk_95": empyrical.value_at_risk(account, cutoff=_TAIL),
            "conditional_value_at_risk_95": empyrical.conditional_value_at_risk(account, cutoff=_TAIL),
            "skew": _skew(account),
            "tail_ratio": empyrical.tail_ratio(account),
        }
        if market is not None:
            found |= _against(account, market, year, periods_per_year, empyrical)
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _against(
    account: NDArray[np.float64],
    market: NDArray[np.float64],
    year: dict[str, Any],
    periods_per_year: float,
    empyrical: Any,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "benchmark_total_return": ratios.total_return(market),
        "benchmark_annual_return": empyrical.annual_return(market, **year),
        "information_ratio": ratios.sharpe_ratio(account - market, periods_per_year=periods_per_year),
    }
    total, held = ratios.total_return(account), found["benchmark_total_return"]
    if total is not None and held is not None:
        found["excess_return"] = total - held
    if ratios.volatility(market):  # alpha and beta of a market that does not move are undefined
        found["beta"] = empyrical.beta_aligned(account, market)
        found["alpha"] = empyrical.alpha_aligned(account, market, _beta=found["beta"], **year)
    return found


def _aligned(returns: ArrayLike, benchmark: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    account = np.asarray(returns, dtype=np.float64)
    market = None if benchmark is None else np.asarray(benchmark, dtype=np.float64)
    for series in (account, market):
        if series is not None and series.ndim != 1:
            raise ValueError(f"expected a one-dimensional series of returns, got shape {series.shape}")
    if market is None:
        return account[np.isfinite(account)], None
    if market.shape != account.shape:
        raise ValueError(f"benchmark: expected {account.size} returns, as many as of the account, got {market.size}")
    known = np.isfinite(account) & np.isfinite(market)
    return account[known], market[known]


def _longest_drawdown(returns: NDArray[np.float64]) -> float:
    wealth = np.concatenate(([1.0], np.cumprod(1.0 + returns)))
    peaks = np.flatnonzero(wealth >= np.maximum.accumulate(wealth))
    return float(np.max(np.diff(np.append(peaks, wealth.size)) - 1))


def _skew(returns: NDArray[np.float64]) -> float | None:
    deviations = returns - returns.mean()
    variance = float(np.mean(deviations**2))
    if returns.size < 3 or not ratios.volatility(returns):
        return None
    return float(np.mean(deviations**3) / variance**1.5)
