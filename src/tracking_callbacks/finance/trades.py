"""Trades, from the positions that were held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Trade", "trade_statistics", "trades_from_positions"]


@dataclass(frozen=True, slots=True)
class Trade:
    """A position that was opened and held without changing sides.

    Attributes:
        entry: Index of the first period in which it was held.
        exit: Index of the last one.
        side: ``"long"`` or ``"short"``.
        closed: It was closed before the series ended.
        total_return: Compounded return of the account over the periods of the trade; NaN if that is unknown.
        entry_price: Price before the first period; NaN if it is unknown.
        exit_price: Price after the last period; NaN if it is unknown.
    """

    entry: int
    exit: int
    side: str
    closed: bool
    total_return: float = math.nan
    entry_price: float = math.nan
    exit_price: float = math.nan

    @property
    def periods(self) -> int:
        """Number of periods for which it was held."""
        return self.exit - self.entry + 1


def trades_from_positions(
    positions: ArrayLike, *, returns: ArrayLike | None = None, prices: ArrayLike | None = None
) -> list[Trade]:
    """Return the trades behind a series of positions, oldest first.

    A trade lasts as long as the position keeps its sign; a change of its size alone begins no other trade.

    Args:
        positions: What was held in each period, shape (n,): 1.0 is the whole account, negative is short. NaN is taken
            as no position.
        returns: Simple return of the account in each period, shape (n,).
        prices: Price before the first period and after each, shape (n + 1,).

    Raises:
        ValueError: The lengths of the series do not fit.
    """
    held = np.nan_to_num(np.asarray(positions, dtype=np.float64))
    earned = None if returns is None else np.asarray(returns, dtype=np.float64)
    known = None if prices is None else np.asarray(prices, dtype=np.float64)
    if earned is not None and earned.shape != held.shape:
        raise ValueError(f"returns: expected {held.size}, one for each position, got {earned.size}")
    if known is not None and known.size != held.size + 1:
        raise ValueError(f"prices: expected {held.size + 1}, one more than positions, got {known.size}")
    signs = np.sign(held)
    borders = np.flatnonzero(np.diff(signs)) + 1
    starts, ends = np.append(0, borders), np.append(borders, held.size)
    return [
        Trade(
            entry=int(start),
            exit=int(end) - 1,
            side="long" if signs[start] > 0 else "short",
            closed=bool(end < held.size),
            total_return=math.nan if earned is None else float(np.prod(1.0 + earned[start:end])) - 1.0,
            entry_price=math.nan if known is None else float(known[start]),
            exit_price=math.nan if known is None else float(known[end]),
        )
        for start, end in zip(starts, ends, strict=True)
        if end > start and signs[start]
    ]


def trade_statistics(
    trades: Sequence[Trade],
    positions: ArrayLike,
    *,
    fees: ArrayLike | None = None,
    periods_per_year: float = 252,
) -> dict[str, float]:
    """Return the statistics of trades by name; a statistic that is undefined is left out.

    ``trades`` (their number), ``turnover`` (sum of the changes of the position per year; opening and closing the whole
    account is 2.0), ``exposure`` (mean size of the position), ``win_rate`` (share of the closed trades with a gain),
    ``profit_factor`` (sum of the gains over the sum of the losses of the closed trades), ``mean_holding_time`` (periods
    per trade) and ``fees`` (their sum).

    Args:
        trades: From `trades_from_positions`.
        positions: The positions that they come from, shape (n,).
        fees: Fee paid in each period, in the unit of the account, shape (n,).
        periods_per_year: Periods in a year.
    """
    held = np.nan_to_num(np.asarray(positions, dtype=np.float64))
    statistics = {"trades": float(len(trades))}
    if held.size:
        changes = np.abs(np.diff(np.concatenate(([0.0], held))))
        statistics["turnover"] = float(changes.sum()) / held.size * periods_per_year
        statistics["exposure"] = float(np.abs(held).mean())
    if trades:
        statistics["mean_holding_time"] = math.fsum(trade.periods for trade in trades) / len(trades)
    outcomes = np.array([trade.total_return for trade in trades if trade.closed and math.isfinite(trade.total_return)])
    if outcomes.size:
        statistics["win_rate"] = float((outcomes > 0).mean())
        losses = -float(outcomes[outcomes < 0].sum())
        if losses > 0.0:
            statistics["profit_factor"] = float(outcomes[outcomes > 0].sum()) / losses
    if fees is not None:
        statistics["fees"] = _sum(np.asarray(fees, dtype=np.float64))
    return {name: value for name, value in statistics.items() if math.isfinite(value)}


def _sum(values: NDArray[np.float64]) -> float:
    return float(np.nansum(values)) if np.isfinite(values).any() else math.nan
