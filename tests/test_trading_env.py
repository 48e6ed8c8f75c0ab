"""The market of the trading example: what the agent sees and earns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.env_checker import check_env

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from trading_env import TradingEnv

DAYS = (40, 120)


def prices(seed: int = 0) -> pd.Series:
    random = np.random.default_rng(seed)
    return pd.Series(100.0 * np.cumprod(1.0 + random.normal(0.0, 0.02, 150)), pd.bdate_range("2020-01-01", periods=150))


def played(env: TradingEnv, actions: list[int]) -> tuple[list[Any], list[float], list[dict[str, Any]]]:
    observation, info = env.reset(seed=0)
    observations, rewards, infos = [observation], [], [info]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        assert not terminated
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
        if truncated:
            break
    return observations, rewards, infos


@pytest.mark.parametrize("day", [0, 1, 30, 78])
def test_the_agent_sees_nothing_of_the_future(day: int) -> None:
    known = prices()
    shuffled = known.copy()
    after = DAYS[0] + day + 1
    shuffled.iloc[after:] = np.random.default_rng(1).permutation(shuffled.iloc[after:].to_numpy())
    actions = np.random.default_rng(2).integers(0, 2, 79).tolist()
    seen, rewards, _ = played(TradingEnv(known, DAYS), actions)
    again, other_rewards, _ = played(TradingEnv(shuffled, DAYS), actions)

    np.testing.assert_array_equal(seen[: day + 1], again[: day + 1])
    assert rewards[:day] == other_rewards[:day]
    if day < 78:
        assert not np.array_equal(seen[day + 1], again[day + 1])


def test_the_account_pays_for_trades_and_earns_the_next_day() -> None:
    known = prices()
    env = TradingEnv(known, DAYS, fee=0.01)
    _, rewards, infos = played(env, [1, 1, 0, 0, 1])
    first = DAYS[0]
    growth = known.iloc[first + 1 : first + 6].to_numpy() / known.iloc[first : first + 5].to_numpy()
    expected = [0.99 * growth[0], growth[1], 0.99, 1.0, 0.99 * growth[4]]

    assert np.exp(rewards) == pytest.approx(expected)
    assert infos[-1]["portfolio_value"] == pytest.approx(np.prod(expected))
    assert [info["position"] for info in infos] == [0, 1, 1, 0, 0, 1]
    assert infos[1]["fee"] == pytest.approx(0.01)
    assert infos[0]["price"] == known.iloc[first]


def test_an_episode_goes_through_its_days_once_and_holding_is_the_price() -> None:
    env = TradingEnv(prices(), DAYS, fee=0.0)
    _, rewards, infos = played(env, [1] * 200)

    assert len(rewards) == DAYS[1] - DAYS[0] - 1
    assert infos[-1]["portfolio_value"] == pytest.approx(prices().iloc[DAYS[1] - 1] / prices().iloc[DAYS[0]])
    assert len(env.feature_names) == env.observation_space.shape[0]
    check_env(env)


def test_days_that_do_not_fit_are_refused() -> None:
    for days in ((10, 100), (40, 41), (40, 151)):
        with pytest.raises(ValueError, match="days: expected 30 <= first"):
            TradingEnv(prices(), days)
