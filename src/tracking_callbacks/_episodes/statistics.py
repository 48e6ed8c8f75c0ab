"""Pure: the trading statistics of episodes, and running statistics of numbers. Knows numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks import finance
from tracking_callbacks.finance import ratios

__all__ = ["STATISTICS", "RunningStats", "Series", "statistics_over_episodes", "trading_statistics"]

STATISTICS = ("sharpe_ratio", "sortino_ratio", "max_drawdown", "total_return", "volatility")

Series = NDArray[np.float64]


def trading_statistics(returns: Series, *, periods_per_year: float, compounded: bool) -> dict[str, float]:
    """Return those of `STATISTICS` that exist for a series of simple returns, shape (steps,).

    Args:
        returns: The returns.
        periods_per_year: For the annualised statistics.
        compounded: Whether the returns may be compounded; otherwise only the Sharpe ratio is returned.
    """
    if compounded:
        return ratios.account_ratios(returns, periods_per_year=periods_per_year)
    sharpe = finance.sharpe_ratio(returns, periods_per_year=periods_per_year)  # raw rewards may be in any unit
    return {} if sharpe is None else {"sharpe_ratio": sharpe}


def statistics_over_episodes(
    returns: Sequence[Series], *, periods_per_year: float, compounded: bool = True
) -> dict[str, float]:
    """Return those of `STATISTICS` that exist for the episodes of one evaluation.

    The ratios and the volatility are those of all returns together. The total return is the mean of the episodes'
    total returns, and the drawdown is the deepest one within an episode, because each episode starts with a new
    account and carries nothing over to the next.

    Args:
        returns: Simple returns of each episode, shape (steps,) each.
        periods_per_year: For the annualised statistics.
        compounded: Whether the returns may be compounded; otherwise only the Sharpe ratio is returned.
    """
    if not returns:
        return {}
    statistics = trading_statistics(np.concatenate(returns), periods_per_year=periods_per_year, compounded=compounded)
    if len(returns) > 1 and compounded:
        each = [trading_statistics(series, periods_per_year=periods_per_year, compounded=True) for series in returns]
        drawdowns = [known["max_drawdown"] for known in each if "max_drawdown" in known]
        totals = [known["total_return"] for known in each if "total_return" in known]
        statistics |= {"max_drawdown": min(drawdowns)} if drawdowns else {}
        statistics |= {"total_return": math.fsum(totals) / len(totals)} if totals else {}
    return statistics


class RunningStats:
    """Mean, extremes and deviation of numbers that are not stored (B. P. Welford, Technometrics 4 (3), 1962)."""

    __slots__ = ("_high", "_low", "_mean", "_squares", "count")

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._low = math.inf
        self._high = -math.inf

    def add(self, value: float) -> None:
        """Add `value`; NaN and infinities are ignored."""
        if not math.isfinite(value):
            return
        self.count += 1
        difference = value - self._mean
        self._mean += difference / self.count
        self._squares += difference * (value - self._mean)
        self._low = min(self._low, value)
        self._high = max(self._high, value)

    def metrics(self, name: str) -> dict[str, float]:
        """Return ``<name>_mean``, ``_min``, ``_max``, ``_std`` (ddof=0, as in SB3) and ``_count``.

        Empty before the first number.
        """
        if not self.count:
            return {}
        deviation = math.sqrt(self._squares / self.count)
        statistics = {
            "mean": self._mean,
            "min": self._low,
            "max": self._high,
            "std": deviation,
            "count": float(self.count),
        }
        return {f"{name}_{statistic}": value for statistic, value in statistics.items()}
