"""The statistics of an account against a market, of its trades, and how sure they are."""

from __future__ import annotations

import math
from typing import Any

import empyrical
import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from tracking_callbacks import finance
from tracking_callbacks._episodes.market import MarketEpisode, account_statistics, independent_returns

Series = NDArray[np.float64]


def pairs() -> list[tuple[Series, Series]]:
    generator = np.random.default_rng(3)
    found = []
    for size in (30, 252, 1500):
        market = generator.normal(0.0004, 0.011, size)
        found.append((0.6 * market + generator.normal(0.0003, 0.006, size), market))
        found.append((np.clip(generator.standard_t(3, size) * 0.02, -0.9, 2.0), market))
    return found


@pytest.mark.parametrize("periods", [12, 252, 8760])
@pytest.mark.parametrize("index", range(6))
def test_every_statistic_equals_its_source(index: int, periods: int) -> None:
    returns, market = pairs()[index]
    year: dict[str, Any] = {"period": None, "annualization": periods}
    found = finance.performance(returns, benchmark=market, periods_per_year=periods)
    wealth = np.concatenate(([1.0], np.cumprod(1.0 + returns)))
    under, longest = 0, 0
    for value, peak in zip(wealth, np.maximum.accumulate(wealth), strict=True):
        under = under + 1 if value < peak else 0
        longest = max(longest, under)
    active = returns - market
    expected = {
        "total_return": empyrical.cum_returns_final(returns),
        "annual_return": empyrical.annual_return(returns, **year),
        "volatility": empyrical.annual_volatility(returns, **year),
        "sharpe_ratio": empyrical.sharpe_ratio(returns, **year),
        "sortino_ratio": empyrical.sortino_ratio(returns, **year),
        "calmar_ratio": empyrical.calmar_ratio(returns, **year),
        "omega_ratio": empyrical.omega_ratio(returns),
        "max_drawdown": empyrical.max_drawdown(returns),
        "max_drawdown_length": longest,
        "value_at_risk_95": empyrical.value_at_risk(returns, cutoff=0.05),
        "conditional_value_at_risk_95": empyrical.conditional_value_at_risk(returns, cutoff=0.05),
        "skew": scipy.stats.skew(returns),
        "tail_ratio": empyrical.tail_ratio(returns),
        "benchmark_total_return": empyrical.cum_returns_final(market),
        "benchmark_annual_return": empyrical.annual_return(market, **year),
        "excess_return": empyrical.cum_returns_final(returns) - empyrical.cum_returns_final(market),
        "alpha": empyrical.alpha(returns, market, **year),
        "beta": empyrical.beta(returns, market),
        "information_ratio": math.sqrt(periods) * active.mean() / active.std(ddof=1),
    }

    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("returns", "benchmark"),
    [
        ([], []),
        ([0.01], [0.02]),
        ([0.01] * 10, [0.0] * 10),
        ([0.0] * 10, [0.01, -0.01] * 5),
        ([0.01, np.nan, 0.02], [0.0, 0.01, np.nan]),
        ([np.nan, np.nan], [np.nan, np.nan]),
        ([-1.0, 0.5, 0.1], [0.1, 0.1, 0.1]),
        ([0.01, 0.02, 0.03], [0.01, 0.02, 0.03]),
    ],
)
def test_what_is_undefined_is_absent(returns: list[float], benchmark: list[float]) -> None:
    found = finance.performance(returns, benchmark=benchmark)

    assert all(math.isfinite(value) for value in found.values())
    if len(set(returns)) < 2:
        assert not found.keys() & {"sharpe_ratio", "sortino_ratio", "skew", "beta"} or set(benchmark) - {0.0}
    assert "information_ratio" not in found or returns != benchmark


def test_series_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="benchmark: expected 3 returns"):
        finance.performance([0.1, 0.2, 0.3], benchmark=[0.1])
    with pytest.raises(ValueError, match="one-dimensional"):
        finance.performance([[0.1, 0.2]])


def test_a_market_that_stands_still_has_no_alpha_or_beta() -> None:
    found = finance.performance([0.01, -0.02, 0.03], benchmark=[0.0, 0.0, 0.0])

    assert not found.keys() & {"alpha", "beta"}
    assert found["benchmark_total_return"] == 0.0


def test_trades_last_as_long_as_the_position_keeps_its_side() -> None:
    positions = [0.0, 1.0, 0.5, 0.0, -1.0, -1.0, 1.0]
    returns = [0.0, 0.1, 0.1, 0.0, 0.05, -0.1, 0.2]
    prices = [10.0, 10.0, 11.0, 12.0, 12.0, 11.0, 12.0, 14.0]
    trades = finance.trades_from_positions(positions, returns=returns, prices=prices)

    assert [(one.entry, one.exit, one.side, one.closed, one.periods) for one in trades] == [
        (1, 2, "long", True, 2),
        (4, 5, "short", True, 2),
        (6, 6, "long", False, 1),
    ]
    assert [one.total_return for one in trades] == pytest.approx([0.21, 1.05 * 0.9 - 1.0, 0.2])
    assert [(one.entry_price, one.exit_price) for one in trades] == [(10.0, 12.0), (12.0, 12.0), (12.0, 14.0)]

    statistics = finance.trade_statistics(trades, positions, fees=[0, 0.1, 0, 0.1, 0.1, 0, 0.2], periods_per_year=7)
    assert statistics == pytest.approx(
        {
            "trades": 3.0,
            "turnover": 1.0 + 0.5 + 0.5 + 1.0 + 2.0,
            "exposure": 4.5 / 7,
            "mean_holding_time": 5 / 3,
            "win_rate": 0.5,
            "profit_factor": 0.21 / 0.055,
            "fees": 0.5,
        }
    )


def test_trades_without_losses_have_no_profit_factor() -> None:
    trades = finance.trades_from_positions([1.0, 0.0], returns=[0.1, 0.0])

    assert "profit_factor" not in finance.trade_statistics(trades, [1.0, 0.0])
    assert finance.trade_statistics([], []) == {"trades": 0.0}
    with pytest.raises(ValueError, match="prices: expected 3"):
        finance.trades_from_positions([1.0, 0.0], prices=[1.0])


def test_the_standard_error_is_los() -> None:
    returns = np.random.default_rng(1).normal(0.001, 0.01, 60)
    monthly = returns.mean() / returns.std(ddof=1)

    expected = math.sqrt(12) * math.sqrt((1 + monthly**2 / 2) / 60)
    assert finance.sharpe_standard_error(returns, periods_per_year=12) == pytest.approx(expected, rel=1e-12)
    assert finance.sharpe_standard_error([0.01]) is None


def test_the_probabilistic_ratio_is_bailey_and_lopez_de_prados() -> None:
    """The formula of their 2012 paper, written out with scipy."""
    returns = np.random.default_rng(2).standard_t(4, 250) * 0.01 + 0.0005
    ratio = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = scipy.stats.skew(returns), scipy.stats.kurtosis(returns, fisher=False)
    for annual in (0.0, 1.0):
        above = ratio - annual / math.sqrt(252)
        spread = math.sqrt(1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2)
        expected = scipy.stats.norm.cdf(above * math.sqrt(249) / spread)

        found = finance.probabilistic_sharpe_ratio(returns, benchmark_sharpe=annual)
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_example_of_the_deflated_ratio_is_reproduced() -> None:
    """Bailey and López de Prado 2014: 100 trials with a variance of 1/2 (annual), expected maximum per day 0.1132."""
    luck = finance.expected_maximum_sharpe(100, math.sqrt(0.5)) / math.sqrt(250)

    assert luck == pytest.approx(0.1132, abs=5e-5)
    assert finance.expected_maximum_sharpe(1, 2.0) == 0.0


def test_the_best_of_many_lucky_trials_does_not_look_like_skill() -> None:
    random = np.random.default_rng(5)
    trials = [random.normal(0.0, 0.01, 250) for _ in range(50)]
    best = max(trials, key=lambda one: finance.sharpe_ratio(one) or -9.0)

    probable, deflated = finance.probabilistic_sharpe_ratio(best), finance.deflated_sharpe_ratio(best, trials=50)
    assert probable is not None
    assert deflated is not None
    assert probable > 0.95
    assert deflated < 0.8


def windows(*starts: int, size: int = 100, **known: bool) -> list[MarketEpisode]:
    """Return episodes over windows of one market, each played a little differently, as a stochastic policy does."""
    random = np.random.default_rng(7)
    market = random.normal(0.001, 0.01, 1000)
    prices = 50.0 * np.cumprod(np.append(1.0, 1.0 + market))
    return [
        MarketEpisode(
            market[start : start + size] + random.normal(0.0, 1e-4, size),
            benchmark=market[start : start + size] if known.get("benchmark") else None,
            prices=prices[start : start + size + 1] if known.get("prices") else None,
            dates=tuple(f"day {day}" for day in range(start, start + size)) if known.get("dates") else (),
        )
        for start in starts
    ]


@pytest.mark.parametrize("known", ["dates", "prices", "benchmark"])
def test_each_period_of_the_data_counts_once(known: str) -> None:
    assert independent_returns(windows(0, **{known: True})) == 100
    assert independent_returns(windows(0, 0, 0, **{known: True})) == 100
    assert independent_returns(windows(0, 60, **{known: True})) == 160
    assert independent_returns(windows(0, 100, 500, **{known: True})) == 300


def test_without_data_each_series_of_returns_counts_once() -> None:
    first, second = windows(0, 0)

    assert independent_returns([first, first, second]) == 200
    assert independent_returns([]) == 0


def test_the_steps_of_a_day_and_of_a_market_that_stands_still_all_count() -> None:
    flat = MarketEpisode(np.full(6, 0.01), prices=np.full(7, 9.0))
    hourly = MarketEpisode(np.full(6, 0.01), dates=("Monday",) * 3 + ("Tuesday",) * 3)

    assert independent_returns([flat, flat]) == 6
    assert independent_returns([hourly, hourly]) == 6


def test_the_errors_of_an_evaluation_count_each_period_once() -> None:
    episodes = windows(0, 0, 60, dates=True)
    returns = np.concatenate([one.returns for one in episodes])
    found = account_statistics(episodes, periods_per_year=252, trials=9)
    ratio, adjusted = found["sharpe_ratio"], found["sharpe_adjusted_error"]

    assert found["sharpe_standard_error"] == pytest.approx(math.sqrt((252 + ratio**2 / 2) / 160))
    assert adjusted == pytest.approx(
        (finance.sharpe_standard_error(returns, normal=False) or 0.0) * math.sqrt(299 / 159)
    )
    assert found["probabilistic_sharpe_ratio"] == pytest.approx(scipy.stats.norm.cdf(ratio / adjusted))
    luck = finance.expected_maximum_sharpe(9, math.sqrt(252 / 159))
    assert found["deflated_sharpe_ratio"] == pytest.approx(scipy.stats.norm.cdf((ratio - luck) / adjusted))
    assert finance.sharpe_standard_error(returns, observations=1) is None


def test_trades_fees_and_turnover_are_those_of_an_episode() -> None:
    held, flat = np.array([1.0, 0.0, 1.0]), np.zeros(3)
    traded = MarketEpisode(np.array([0.1, 0.0, -0.1]), positions=held, fees=np.array([0.3, 0.3, 0.3]))
    still = MarketEpisode(flat, positions=flat, fees=flat)
    found = account_statistics([traded, traded, still], periods_per_year=3)

    assert [found[name] for name in ("trades", "fees", "turnover")] == pytest.approx([4 / 3, 0.6, 2.0])
    assert found["win_rate"] == 1.0
    assert found["exposure"] == pytest.approx(4 / 9)


@pytest.mark.parametrize("seed", range(20))
def test_levels_are_told_from_returns(seed: int) -> None:
    random = np.random.default_rng(seed)
    returns = random.normal(0.0005, 0.02, 250)

    assert finance.looks_like_levels(returns) == ""
    assert finance.looks_like_levels(random.normal(0.0, 1.0, 12)) == ""
    assert finance.looks_like_levels(1e6 * np.cumprod(1.0 + returns))
    assert finance.looks_like_levels(np.cumsum(returns))
    assert finance.looks_like_levels([1.0] * 100) == ""
