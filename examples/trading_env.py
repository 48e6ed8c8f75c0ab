"""A market in which an agent trades one stock, and pays for it: the environment of ``train_rl_agent.py``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["TradingEnv"]


class TradingEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One stock, day by day: hold cash (action 0) or the stock (action 1).

    The action of a day is carried out at that day's closing price; it earns the return of the next day. The reward is
    the log return of the account after fees, so the sum of an episode's rewards is the log of what the account grew by.
    The agent sees the returns of the days so far and its position: nothing of the day that it bets on.

    Args:
        prices: Closing prices with a sorted index of dates.
        days: First day on which the agent acts, and the day after the last one that it earns; positions in `prices`.
            Before the first day there must be `window` days.
        window: Number of daily returns that the agent sees.
        fee: Share of the traded amount that each purchase and each sale costs.
    """

    def __init__(self, prices: pd.Series, days: tuple[int, int], *, window: int = 30, fee: float = 0.001) -> None:
        first, end = days
        if not window <= first < end - 1 < len(prices):
            raise ValueError(f"days: expected {window} <= first < end - 1 < {len(prices)}, got {days}")
        self.df = pd.DataFrame({"close": prices}).iloc[first - window : end]  # what an episode uses; the run records it
        self._closes = prices.to_numpy(dtype=np.float64)
        self._returns = np.diff(np.log(self._closes), prepend=np.nan)
        self._dates = [str(date)[:10] for date in prices.index]
        self._first, self._end, self._window, self._fee = first, end, window, fee
        past = [f"return {back} days ago" for back in range(window - 1, 0, -1)]
        self.feature_names = [*past, "return today", "position"]
        self.observation_space = spaces.Box(-np.inf, np.inf, (window + 1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin on the first day with cash of 1.0."""
        super().reset(seed=seed, options=options)
        self._day, self._position, self._account = self._first, 0, 1.0
        return self._observation(), self._info(fee=0.0)

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Trade at today's close and go on to tomorrow."""
        before = self._account
        fee = self._fee * abs(int(action) - self._position)
        self._position = int(action)
        self._day += 1
        earned = self._closes[self._day] / self._closes[self._day - 1] if self._position else 1.0
        self._account *= (1.0 - fee) * earned
        reward = float(np.log(self._account / before))
        truncated = self._day >= self._end - 1
        return self._observation(), reward, False, truncated, self._info(fee=fee * before)

    def _observation(self) -> NDArray[np.float32]:
        seen = 100.0 * self._returns[self._day - self._window + 1 : self._day + 1]  # in per cent
        return np.append(seen, self._position).astype(np.float32)

    def _info(self, *, fee: float) -> dict[str, Any]:
        return {
            "portfolio_value": self._account,
            "position": self._position,
            "price": float(self._closes[self._day]),
            "fee": fee,
            "date": self._dates[self._day],
        }
