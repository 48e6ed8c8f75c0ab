"""What an evaluation of a trading agent is judged by: its returns next to a benchmark, its positions, its trades."""

from __future__ import annotations

import contextlib
import enum
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks import finance
from tracking_callbacks._episodes.returns import Info, Memory, number
from tracking_callbacks._episodes.statistics import Series, statistics_over_episodes
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError

__all__ = [
    "Benchmark",
    "MarketEpisode",
    "MarketRecorder",
    "account_statistics",
    "check_benchmark",
    "independent_returns",
    "load_statistics",
    "trades_of",
]

logger = logging.getLogger(__name__)

Benchmark = str | Sequence[float] | NDArray[Any] | Callable[[Info], float] | None

# Keys of the infos of known environments: Gym-Trading-Env, gym-anytrading, common custom ones.
_PRICES = ("price", "data_close", "close")
_POSITIONS = ("position",)
_FEES = ("fee", "fees", "fees_paid", "trading_fees")
_DATES = ("date", "datetime", "timestamp")


@dataclass(frozen=True, slots=True)
class MarketEpisode:
    """An episode of an evaluation.

    Attributes:
        returns: Simple returns of the account, shape (steps,), or fewer where the first account value is unknown.
        equity: Account values; None if they are unknown.
        benchmark: Simple returns of the benchmark in the same steps; None without one.
        prices: Price at the reset and after each step, shape (steps + 1,); None if they are unknown.
        positions: What was held in each step, shape (steps,); None if that is unknown.
        fees: Fee paid in each step, shape (steps,); None if they are unknown.
        dates: Date of each step as text; empty if they are unknown.
    """

    returns: Series
    equity: Series | None = None
    benchmark: Series | None = None
    prices: Series | None = None
    positions: Series | None = None
    fees: Series | None = None
    dates: tuple[str, ...] = ()


def check_benchmark(benchmark: object) -> Benchmark:
    """Return `benchmark` if it is "auto", an info key, a series of prices, a callable or None.

    Raises:
        ConfigError: It is something else.
    """
    if benchmark is None or callable(benchmark) or (isinstance(benchmark, str) and benchmark.strip()):
        return benchmark
    try:
        prices = np.asarray(benchmark, dtype=np.float64)
    except (TypeError, ValueError):
        prices = np.empty(0)
    if prices.ndim == 1 and prices.size > 1 and not isinstance(benchmark, str):
        return prices
    raise ConfigError(
        "benchmark: expected 'auto', the info key of a price, a series of prices, a callable (info) -> price, or None, "
        f"got {benchmark!r:.200}",
        setting="benchmark",
    )


class MarketRecorder:
    """Takes in what the environments of an evaluation say of the market, step by step.

    Args:
        n_envs: Number of environments.
        benchmark: What the agent is compared with. ``"auto"``: the price that the environment trades, bought and held.
        memory: Returns an attribute of an environment, None if it has none.
    """

    def __init__(self, n_envs: int, benchmark: Benchmark, memory: Memory | None = None) -> None:
        self._benchmark = benchmark
        self._memory = memory
        self._infos: list[list[Info]] = [[] for _ in range(n_envs)]
        self._first: list[Info] = [{}] * n_envs

    def begin(self, env: int, reset_info: Info | None) -> None:
        """Note that an environment was reset."""
        self._first[env] = _about_market(reset_info or {}, self._benchmark)
        self._infos[env] = []

    def add_step(self, env: int, info: Info) -> None:
        """Add a step of one environment."""
        self._infos[env].append(_about_market(info, self._benchmark))

    def finish(self, env: int, returns: Series, equity: Series | None) -> MarketEpisode:
        """Return the episode that has ended.

        Args:
            env: Index of the environment.
            returns: Simple returns of its account.
            equity: Its account values.
        """
        infos = [self._first[env], *self._infos[env]]
        prices = _series(infos, _PRICES)
        if prices is None:
            prices = self._known_prices(env, len(infos))
        benchmark = prices if isinstance(self._benchmark, str) and self._benchmark == "auto" else self._levels(infos)
        dates = [next((str(info[key]) for key in _DATES if key in info), "") for info in infos[1:]]
        positions, fees = _series(infos, _POSITIONS), _series(infos, _FEES)
        return MarketEpisode(
            returns=returns,
            equity=equity,
            benchmark=None if benchmark is None else _fitted(finance.returns_from_equity(benchmark), returns.size),
            prices=prices,
            positions=None if positions is None else positions[1:],
            fees=None if fees is None else fees[1:],
            dates=tuple(dates) if any(dates) else (),
        )

    def _levels(self, infos: Sequence[Info]) -> Series | None:
        """Return the prices of the user's benchmark at the reset and after each step."""
        if self._benchmark is None:
            return None
        if isinstance(self._benchmark, str):
            return _series(infos, (self._benchmark,))
        if callable(self._benchmark):
            return _series(infos, (_OF_CALLABLE,))
        prices = np.asarray(self._benchmark, dtype=np.float64)
        if prices.size < len(infos):
            logger.warning(
                "benchmark: an episode of %d steps needs %d prices, and there are %d; it is not compared",
                *(len(infos) - 1, len(infos), prices.size),
            )
            return None
        return prices[: len(infos)]

    def _known_prices(self, env: int, count: int) -> Series | None:
        """Return the prices that gym-anytrading's environments trade in an episode."""
        prices = None if self._memory is None else self._memory(env, "prices")
        start = (
            None if self._memory is None else self._memory(env, "_start_tick")
        )  # undocumented (gym-anytrading 2.0.0)
        if prices is None or not isinstance(start, int):
            return None
        traded = np.asarray(prices, dtype=np.float64)[start : start + count]
        return traded if traded.size == count else None


_OF_CALLABLE = "benchmark"


def _about_market(info: Info, benchmark: Benchmark) -> dict[str, Any]:
    """Return what an info says of the market; a copy, because it may hold whole frames, or be changed later."""
    keys = (*_PRICES, *_POSITIONS, *_FEES, *_DATES)
    said = {key: info[key] for key in keys if key in info}
    if isinstance(benchmark, str) and benchmark in info:
        said[benchmark] = info[benchmark]
    elif callable(benchmark):
        said[_OF_CALLABLE] = _asked(benchmark, info)
    return said


@never_in_the_way(default=math.nan)
def _asked(benchmark: Callable[[Info], float], info: Info) -> float:
    return float(benchmark(info))


def _series(infos: Sequence[Info], keys: Sequence[str]) -> Series | None:
    """Return the numbers under the first of `keys` that any info has, NaN where one has none; None without any."""
    for key in keys:
        values = np.array([_number(info.get(key)) for info in infos])
        if np.isfinite(values[1:]).any():
            return values
    return None


def _number(value: object) -> float:
    return number(value.value if isinstance(value, enum.Enum) else value)


def _fitted(returns: Series, size: int) -> Series:
    """Return the last `size` of the returns: an account without a first value has one fewer than the market."""
    return returns[returns.size - size :] if returns.size >= size else np.full(size, math.nan)


def trades_of(episode: MarketEpisode) -> list[finance.Trade]:
    """Return the trades of an episode; none if its positions are unknown."""
    if episode.positions is None:
        return []
    fits = episode.returns.size == episode.positions.size
    return finance.trades_from_positions(
        episode.positions, returns=episode.returns if fits else None, prices=episode.prices
    )


def load_statistics() -> None:
    """Import what `account_statistics` needs, which takes most of a second, if it is installed."""
    with contextlib.suppress(ModuleNotFoundError):
        import empyrical  # noqa: F401


def independent_returns(episodes: Sequence[MarketEpisode]) -> int:
    """Return how many of the returns of all episodes together are independent: each period of the data counts once.

    Episodes over the same data are repetitions, and no longer track record. Their returns are nearly equal even if the
    policy is stochastic, because the market moves all of them: observations within a cluster, here a date, are not
    independent of each other (M. A. Petersen, "Estimating Standard Errors in Finance Panel Data Sets", The Review of
    Financial Studies 22 (1), 2009). The number of clusters is the least that they may count as.

    A step is known by its date; without dates by the move of the price, without prices by that of the benchmark,
    without either by its place in the whole series of returns. What occurs several times within an episode, for example
    a date of hourly steps, counts as often as in the episode in which it occurs most.

    Args:
        episodes: The episodes of one evaluation.
    """
    periods: Counter[Hashable] = Counter()
    for episode in episodes:
        periods |= Counter(_periods(episode))
    return periods.total()


def _periods(episode: MarketEpisode) -> Iterable[Hashable]:
    """Return what tells the data of each step from the data of others."""
    size = episode.returns.size
    known: list[Hashable] | None = None
    if episode.dates:
        known = list(episode.dates)
    elif episode.prices is not None:
        known = list(itertools.pairwise(np.nan_to_num(episode.prices).tolist()))
    elif episode.benchmark is not None:
        known = np.nan_to_num(episode.benchmark).tolist()
    if known is None:
        return [(episode.returns.tobytes(), step) for step in range(size)]
    return itertools.islice(reversed(known), size)


def account_statistics(
    episodes: Sequence[MarketEpisode], *, periods_per_year: float, trials: int = 1
) -> dict[str, float]:
    """Return the statistics of an evaluation: see `finance.performance`, `finance.trade_statistics`, `significance`.

    Ratios are those of the returns of all episodes together; their errors and probabilities count
    `independent_returns`. Total returns, the turnover and the numbers of trades and fees are means over the episodes,
    and drawdowns are the deepest and the longest within an episode, because each episode starts with a new account.

    Args:
        episodes: The episodes whose returns are known.
        periods_per_year: For the annualised statistics.
        trials: Number of trials that the agent is one of.
    """
    if not episodes:
        return {}
    returns = np.concatenate([episode.returns for episode in episodes])
    year: dict[str, Any] = {"periods_per_year": periods_per_year}
    try:
        statistics = _performance(episodes, returns, periods_per_year)
    except ModuleNotFoundError as error:
        logger.info("most trading statistics need pip install 'tracking-callbacks[finance]': %s", error)
        statistics = statistics_over_episodes([one.returns for one in episodes], compounded=True, **year)
    year["observations"] = independent_returns(episodes)
    significance = {
        "sharpe_standard_error": finance.sharpe_standard_error(returns, **year),
        "sharpe_adjusted_error": finance.sharpe_standard_error(returns, normal=False, **year),
        "probabilistic_sharpe_ratio": finance.probabilistic_sharpe_ratio(returns, **year),
        "deflated_sharpe_ratio": finance.deflated_sharpe_ratio(returns, trials=trials, **year) if trials > 1 else None,
    }
    statistics |= {name: value for name, value in significance.items() if value is not None}
    return statistics | _of_trades(episodes, periods_per_year)


def _performance(episodes: Sequence[MarketEpisode], returns: Series, periods_per_year: float) -> dict[str, float]:
    markets = [one.benchmark for one in episodes if one.benchmark is not None]
    market = np.concatenate(markets) if len(markets) == len(episodes) else None
    statistics = finance.performance(returns, benchmark=market, periods_per_year=periods_per_year)
    if len(episodes) == 1:
        return statistics
    each = [
        finance.performance(
            one.returns, benchmark=None if market is None else one.benchmark, periods_per_year=periods_per_year
        )
        for one in episodes
    ]
    statistics |= _means(each, ("total_return", "benchmark_total_return", "excess_return"))
    combined: dict[str, Callable[[list[float]], float]] = {"max_drawdown": min, "max_drawdown_length": max}
    for name, combine in combined.items():
        if known := [one[name] for one in each if name in one]:
            statistics[name] = combine(known)
    if statistics.get("max_drawdown", 0.0) < 0.0 and "annual_return" in statistics:
        statistics["calmar_ratio"] = statistics["annual_return"] / -statistics["max_drawdown"]
    return statistics


def _of_trades(episodes: Sequence[MarketEpisode], periods_per_year: float) -> dict[str, float]:
    known = [one for one in episodes if one.positions is not None]
    if not known:
        return {}
    trades, year = [trades_of(one) for one in known], {"periods_per_year": periods_per_year}
    positions = [one.positions for one in known if one.positions is not None]
    statistics = finance.trade_statistics(list(itertools.chain(*trades)), np.concatenate(positions), **year)
    each = [
        finance.trade_statistics(own, held, fees=one.fees, **year)
        for one, own, held in zip(known, trades, positions, strict=True)
    ]
    return statistics | _means(each, ("trades", "turnover", "fees"))


def _means(each: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Return the means of statistics over the episodes in which they are known."""
    values = {name: [one[name] for one in each if name in one] for name in names}
    return {name: math.fsum(known) / len(known) for name, known in values.items() if known}
