"""Statistics of trading: pure functions of return series, usable without a callback.

Each function takes a one-dimensional series of *simple* returns (0.01 is one per cent) and returns None, or leaves a
statistic out, where it is undefined: never inf, never a zero that looks like a measurement.

- `ratios` (numpy only): Sharpe and Sortino ratio, drawdown, total return, volatility.
- `performance` (needs ``pip install 'tracking-callbacks[finance]'``): the statistics of an account, also against a
  benchmark, by ``empyrical`` (https://github.com/stefan-jansen/empyrical-reloaded).
- `trades`: trades from positions, and their statistics.
- `significance`: how sure a Sharpe ratio is, and how much of it many trials explain.
"""

from tracking_callbacks.finance.performance import performance
from tracking_callbacks.finance.ratios import (
    looks_like_levels,
    max_drawdown,
    returns_from_equity,
    sharpe_ratio,
    sortino_ratio,
    total_return,
    volatility,
)
from tracking_callbacks.finance.significance import (
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    probabilistic_sharpe_ratio,
    sharpe_standard_error,
)
from tracking_callbacks.finance.trades import Trade, trade_statistics, trades_from_positions

__all__ = [
    "Trade",
    "deflated_sharpe_ratio",
    "expected_maximum_sharpe",
    "looks_like_levels",
    "max_drawdown",
    "performance",
    "probabilistic_sharpe_ratio",
    "returns_from_equity",
    "sharpe_ratio",
    "sharpe_standard_error",
    "sortino_ratio",
    "total_return",
    "trade_statistics",
    "trades_from_positions",
    "volatility",
]
