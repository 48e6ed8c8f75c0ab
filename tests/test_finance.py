"""Statistics of return series: equal to empyrical's where they exist, None where they do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import empyrical
import numpy as np
import pytest
from numpy.typing import NDArray

from tracking_callbacks import finance
from tracking_callbacks.finance.ratios import account_ratios

Series = NDArray[np.float64]


def random_series() -> list[Series]:
    generator = np.random.default_rng(7)
    sizes = (2, 3, 10, 252, 10_000)
    daily = [generator.normal(0.0005, 0.01, size) for size in sizes]
    wild = [np.clip(generator.standard_t(2, size) * 0.05, -0.9, 5.0) for size in sizes]
    with_gaps = daily[3].copy()
    with_gaps[::7] = np.nan
    return [*daily, *wild, with_gaps, np.array([0.0, 0.0, 0.01]), np.array([-0.5, 1.0, -0.5, 1.0])]


def agree(ours: float | None, theirs: float) -> bool:
    if ours is None:
        return not math.isfinite(theirs)
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("periods", [12, 252, 8760])
@pytest.mark.parametrize("series", random_series(), ids=lambda series: f"n{series.size}")
def test_ratios_equal_empyrical_on_random_series(series: Series, periods: int) -> None:
    rate = 0.0001

    assert agree(
        finance.sharpe_ratio(series, periods_per_year=periods, risk_free=rate),
        empyrical.sharpe_ratio(series, risk_free=rate, annualization=periods),
    )
    assert agree(
        finance.sortino_ratio(series, periods_per_year=periods, required_return=rate),
        empyrical.sortino_ratio(series, required_return=rate, annualization=periods),
    )
    assert agree(
        finance.volatility(series, periods_per_year=periods),
        empyrical.annual_volatility(series, annualization=periods),
    )


@pytest.mark.parametrize("series", random_series(), ids=lambda series: f"n{series.size}")
def test_drawdown_and_total_return_equal_empyrical_on_random_series(series: Series) -> None:
    assert agree(finance.max_drawdown(series), empyrical.max_drawdown(series))
    assert agree(finance.total_return(series), empyrical.cum_returns_final(series))


@pytest.mark.parametrize(
    "series", [*random_series(), np.array([]), np.array([0.01]), np.full(5, 0.01)], ids=lambda series: f"n{series.size}"
)
def test_the_ratios_of_an_account_are_those_of_each_function(series: Series) -> None:
    finite = series[np.isfinite(series)]
    each = {
        "sharpe_ratio": finance.sharpe_ratio(finite),
        "sortino_ratio": finance.sortino_ratio(finite),
        "max_drawdown": finance.max_drawdown(finite),
        "total_return": finance.total_return(finite),
        "volatility": finance.volatility(finite),
    }

    known = {name: value for name, value in each.items() if value is not None}
    assert account_ratios(finite) == pytest.approx(known, rel=1e-9, abs=1e-12)


DEGENERATE = {
    "empty": [],
    "one": [0.01],
    "one-and-nan": [math.nan, 0.1, math.nan],
    "zeros": [0.0] * 50,
    "equal": [0.1] * 1000,
    "gains": [0.01, 0.02, 0.0],
    "losses": [-0.01, -0.02, -0.5],
    "ruin": [0.5, -1.0, 0.3],
    "debt": [-1.5, 0.2, 0.1],
    "mean-zero": [0.01, -0.01] * 20,
    "tiny": list(1e-12 * np.random.default_rng(0).normal(size=100)),
    "one-huge": [0.0] * 99 + [1e6],
    "float32": list(np.full(7, 0.1, np.float32)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_every_statistic_equals_empyrical_on_degenerate_series(name: str) -> None:
    series = np.array(DEGENERATE[name], dtype=float)

    assert agree(finance.sharpe_ratio(series), empyrical.sharpe_ratio(series))
    assert agree(finance.sortino_ratio(series), empyrical.sortino_ratio(series))
    assert agree(finance.volatility(series), empyrical.annual_volatility(series))
    assert agree(finance.max_drawdown(series), empyrical.max_drawdown(series))
    assert agree(finance.total_return(series), empyrical.cum_returns_final(series))


@pytest.mark.parametrize("series", [[], [0.01], [math.nan, 0.01]], ids=["empty", "one", "one-and-nan"])
def test_fewer_than_two_returns_have_no_ratio(series: list[float]) -> None:
    assert finance.sharpe_ratio(series) is None
    assert finance.sortino_ratio(series) is None
    assert finance.volatility(series) is None


@pytest.mark.parametrize(
    "series",
    [
        np.zeros(50),
        np.full(1_000, 0.1),  # its float deviation is 1e-17, not 0
        np.full(3, 1 / 3),
        np.full(7, 0.1, dtype=np.float32),
        finance.returns_from_equity(1.01 ** np.arange(300)),
        finance.returns_from_equity(1e6 * 1.0005 ** np.arange(5_000)),
    ],
    ids=["zeros", "tenths", "thirds", "float32", "compound", "compound-long"],
)
def test_a_constant_series_has_no_sharpe_ratio(series: Series) -> None:
    assert finance.sharpe_ratio(series) is None
    assert finance.volatility(series) == 0.0


def test_gains_without_losses_have_no_sortino_ratio() -> None:
    assert finance.sortino_ratio([0.01, 0.02, 0.0]) is None


@pytest.mark.parametrize(
    "statistic",
    [
        finance.sharpe_ratio,
        finance.sortino_ratio,
        finance.volatility,
        finance.max_drawdown,
        finance.total_return,
    ],
)
def test_a_series_with_an_infinite_return_has_no_statistics(statistic: Callable[..., float | None]) -> None:
    assert statistic([0.01, math.inf, -0.02]) is None


def test_drawdown_counts_a_loss_from_the_start_and_stops_at_everything() -> None:
    assert finance.max_drawdown([-0.25, 0.1]) == pytest.approx(-0.25)
    assert finance.max_drawdown([0.1, 0.2]) == 0.0
    assert finance.max_drawdown([0.5, -1.0, 0.3]) == pytest.approx(-1.0)
    assert finance.max_drawdown([]) is None


def test_returns_follow_the_equity() -> None:
    returns = finance.returns_from_equity([100.0, 110.0, 99.0])

    assert returns == pytest.approx([0.1, -0.1])
    assert finance.total_return(returns) == pytest.approx(-0.01)


def test_a_return_on_lost_equity_is_undefined() -> None:
    returns = finance.returns_from_equity([10.0, 0.0, 5.0])

    assert returns[0] == -1.0
    assert math.isnan(returns[1])
    assert finance.returns_from_equity([10.0]).size == 0


def test_a_table_of_returns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one-dimensional.*\(2, 2\)"):
        finance.sharpe_ratio([[0.1, 0.2], [0.3, 0.4]])
