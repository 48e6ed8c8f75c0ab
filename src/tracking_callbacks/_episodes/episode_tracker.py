"""The episodes of a training: their steps, figures and table. Knows numpy, and no reinforcement-learning library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks import finance
from tracking_callbacks._episodes.returns import Info, Kind, ReturnsSource, number

__all__ = [
    "Episode",
    "EpisodeTable",
    "EpisodeTracker",
    "PointBudget",
    "RunningStats",
    "StepBuffer",
    "statistics_over_episodes",
]

STATISTICS = ("sharpe_ratio", "sortino_ratio", "max_drawdown", "total_return", "volatility")

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode.

    Attributes:
        timestep: Steps over all environments when it ended.
        env: Index of its environment.
        reward: Sum of its raw rewards.
        length: Its steps.
        statistics: Those of `STATISTICS` that exist.
        skipped: Why its return series could not be used; None where it was.
    """

    timestep: int
    env: int
    reward: float
    length: int
    statistics: Mapping[str, float]
    skipped: str | None

    def metrics(self) -> dict[str, float]:
        """Return what a run plots of an episode."""
        plotted = {"episode/reward": self.reward, "episode/length": float(self.length)}
        return plotted | {f"episode/{name}": value for name, value in self.statistics.items()}


class StepBuffer:
    """Rewards and values of the steps of running episodes: a row per step, a column per environment.

    Memory grows with the longest episode, never with the training, and stops at `limit` numbers: of an
    episode that is longer than that only the reward and the length stay known.
    """

    def __init__(self, n_envs: int, *, rows: int = 1024, limit: int = 4_000_000) -> None:
        self._single = n_envs == 1
        self._rows = rows
        self._max_rows = max(rows, limit // n_envs)
        self._rewards = np.empty((rows, n_envs))
        self._values = np.full((rows, n_envs), math.nan)
        self._next = 0
        self._summed = 0
        self._total = 0.0
        self._starts = [0] * n_envs
        self._cut_rewards = [0.0] * n_envs
        self._cut_steps = [0] * n_envs

    def append(self, rewards: Any, values: Sequence[Any] | None) -> None:
        """Add a step of every environment."""
        row = self._next
        if row == self._rows:
            self._make_room()
            row = self._next
        self._rewards[row] = rewards
        if values is not None:
            try:
                if self._single:  # five times faster than a row
                    self._values[row, 0] = values[0]
                else:
                    self._values[row] = values
            except (TypeError, ValueError):  # an environment gave something that is not a number
                self._values[row] = [number(value) for value in values]
        self._next = row + 1

    def length(self, env: int) -> int:
        """Return the steps of the running episode of `env`."""
        return self._cut_steps[env] + self._next - self._starts[env]

    def close(self, env: int) -> tuple[float, Series, Series, bool]:
        """End the running episode of `env`.

        Returns:
            The sum of its rewards, its rewards and its values (views, valid until the next step), and whether
            these are all of them.
        """
        start, self._starts[env] = self._starts[env], self._next
        rewards, values = self._rewards[start : self._next, env], self._values[start : self._next, env]
        total, complete = self._cut_rewards[env] + float(rewards.sum()), self._cut_steps[env] == 0
        self._cut_rewards[env], self._cut_steps[env] = 0.0, 0
        return total, rewards, values, complete

    def total_reward(self) -> float:
        """Return the sum of all rewards ever added, NaN left out."""
        self._total += float(np.nansum(self._rewards[self._summed : self._next]))
        self._summed = self._next
        return self._total

    def _make_room(self) -> None:
        self.total_reward()
        rows = self._rows
        first = min(self._starts)
        if first < rows // 2 and rows < self._max_rows:
            grown = np.full((2, rows, self._rewards.shape[1]), math.nan)
            self._rewards = np.concatenate([self._rewards, grown[0]])
            self._values = np.concatenate([self._values, grown[1]])
            self._rows = len(self._rewards)
            return
        if first == 0:
            first = max(rows // 2, 1)
            self._cut(first)
        self._rewards[: rows - first] = self._rewards[first:].copy()
        self._values[: rows - first] = self._values[first:].copy()
        self._starts = [start - first for start in self._starts]
        self._next -= first
        self._summed = self._next

    def _cut(self, first: int) -> None:
        for env, start in enumerate(self._starts):
            if start < first:
                self._cut_rewards[env] += float(self._rewards[start:first, env].sum())
                self._cut_steps[env] += first - start
                self._starts[env] = first


class EpisodeTracker:
    """Follows the running episodes of all environments and closes them.

    Args:
        n_envs: Number of environments.
        source: Where returns come from.
        periods_per_year: For the annualised figures.

    Attributes:
        source: Where returns come from.
        last_equity: Account values of the episode closed last, from its reset on; None where there are none.
        last_returns: Its returns, None where they could not be used; a view, valid until the next step.
    """

    def __init__(self, n_envs: int, source: ReturnsSource, periods_per_year: float) -> None:
        self.n_envs = n_envs
        self.source = source
        self.last_equity: Series | None = None
        self._key, self._step_return = source.key, source.step_return  # read at every step
        self._periods = periods_per_year
        self.last_returns: Series | None = None
        self._steps = StepBuffer(n_envs)
        self._whole = [False] * n_envs
        self._first_values = [math.nan] * n_envs

    def begin(self, env: int, reset_info: Info | None) -> None:
        """The environment `env` has been reset."""
        self._whole[env] = True
        self._first_values[env] = self.source.first_value(reset_info)

    def interrupt(self) -> None:
        """The training stood still: what happened to the environments meanwhile is unknown."""
        self._whole = [self._whole[env] and self._steps.length(env) == 0 for env in range(self.n_envs)]

    def add_step(self, rewards: Any, infos: Sequence[Info]) -> None:
        """Add a step of every environment, with raw rewards."""
        key, step_return = self._key, self._step_return
        values: list[Any] | None = None
        if key is not None:
            # A comprehension is a call of its own in Python 3.11.
            values = [infos[0].get(key, math.nan)] if self.n_envs == 1 else [info.get(key, math.nan) for info in infos]
        elif step_return is not None:
            values = [step_return(info, reward) for info, reward in zip(infos, rewards, strict=True)]
        self._steps.append(rewards, values)

    def running(self) -> int:
        """Return how many episodes are under way."""
        return sum(self._steps.length(env) > 0 for env in range(self.n_envs))

    def total_reward(self) -> float:
        """Return the sum of all raw rewards so far, of unfinished episodes too."""
        return self._steps.total_reward()

    def finish(self, env: int, timestep: int, info: Info, reset_info: Info | None) -> Episode | None:
        """Close the episode of `env` and begin its next one.

        Args:
            env: Index of the environment.
            timestep: Steps over all environments by now.
            info: Info of the last step; ``info["episode"]`` of a monitor goes before what was summed up here.
            reset_info: Info of the reset that has followed already.

        Returns:
            None for an episode that was joined midway, with no monitor that knows the rest of it.
        """
        length = self._steps.length(env)
        reward, rewards, values, complete = self._steps.close(env)
        monitored = info.get("episode")
        whole = self._whole[env] or (monitored is not None and number(monitored["l"]) == length)
        first_value = self._first_values[env]
        self.begin(env, reset_info)
        self.last_equity = self.last_returns = None
        if monitored is None and not whole:
            return None
        if monitored is not None:
            reward, length = number(monitored["r"]), int(monitored["l"])
        statistics: dict[str, float] = {}
        skipped = None if whole and complete else "seen only in part"
        if skipped is None:
            returns = self._returns(rewards, values, first_value)
            skipped = None if np.isfinite(returns).all() else "missing or infinite values"
            if skipped is None:
                self.last_returns = returns
                statistics = _statistics(returns, self._periods, compounded=self.source.declared)
        return Episode(timestep, env, reward, length, statistics, skipped)

    def _returns(self, rewards: Series, values: Series, first_value: float) -> Series:
        if self.source.kind is not Kind.EQUITY:
            return rewards if self.source.kind is Kind.REWARD else values
        known = math.isfinite(first_value)
        self.last_equity = np.concatenate(([first_value], values)) if known else values.copy()
        return finance.returns_from_equity(self.last_equity)


def statistics_over_episodes(
    returns: Sequence[Series], *, periods_per_year: float, compounded: bool = True
) -> dict[str, float]:
    """Return the trading figures of several episodes, of one evaluation, as those of `STATISTICS` that exist.

    The ratios and the volatility are those of all returns together, the total return is the mean of the episodes'
    total returns, the drawdown the deepest within an episode: each episode begins with an account of its own, and
    nothing is carried from one to the next.

    Args:
        returns: Simple returns of each episode, shape (steps,) each.
        periods_per_year: For the annualised figures.
        compounded: Whether they may be compounded, else there is a Sharpe ratio only.
    """
    if not returns:
        return {}
    statistics = _statistics(np.concatenate(returns), periods_per_year, compounded=compounded)
    if len(returns) > 1 and compounded:
        apart = [_statistics(series, periods_per_year, compounded=True) for series in returns]
        drawdowns = [known["max_drawdown"] for known in apart if "max_drawdown" in known]
        totals = [known["total_return"] for known in apart if "total_return" in known]
        statistics |= {"max_drawdown": min(drawdowns)} if drawdowns else {}
        statistics |= {"total_return": math.fsum(totals) / len(totals)} if totals else {}
    return statistics


def _statistics(returns: Series, periods: float, *, compounded: bool) -> dict[str, float]:
    statistics = {"sharpe_ratio": finance.sharpe_ratio(returns, periods_per_year=periods)}
    if compounded:  # rewards of any unit cannot be
        statistics |= {
            "sortino_ratio": finance.sortino_ratio(returns, periods_per_year=periods),
            "max_drawdown": finance.max_drawdown(returns),
            "total_return": finance.total_return(returns),
            "volatility": finance.volatility(returns, periods_per_year=periods),
        }
    return {name: value for name, value in statistics.items() if value is not None}


class PointBudget:
    """Decides which episodes of a run become points of its curves, however many and however short they are.

    At most `limit` do. Four fifths are spread evenly over the steps planned at first, the rest over whatever
    follows when the training is continued. A run with few episodes shows all of them.

    Attributes:
        spent: Points given so far.
    """

    def __init__(self, planned_steps: int, limit: int = 1000, *, spent: int = 0) -> None:
        self.spent = spent
        self._planned = max(planned_steps, 1)
        self._limit = limit

    def spend(self, steps: int) -> bool:
        """Return whether an episode that ended `steps` steps after the run's begin gets its point."""
        share = 0.8 * steps / self._planned if steps <= self._planned else 1.0 - 0.2 * self._planned / steps
        if self.spent >= self._limit * share:
            return False
        self.spent += 1
        return True


class RunningStats:
    """Mean, extremes and deviation of numbers that are not kept (B. P. Welford, Technometrics 4 (3), 1962)."""

    __slots__ = ("_high", "_low", "_mean", "_squares", "count")

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._low = math.inf
        self._high = -math.inf

    def add(self, value: float) -> None:
        """Take in `value`, unless it is not finite."""
        if not math.isfinite(value):
            return
        self.count += 1
        difference = value - self._mean
        self._mean += difference / self.count
        self._squares += difference * (value - self._mean)
        self._low = min(self._low, value)
        self._high = max(self._high, value)

    def metrics(self, name: str) -> dict[str, float]:
        """Return ``<name>_mean``, ``_min``, ``_max``, ``_std`` (ddof=0, as SB3's) and ``_count``, if there are any."""
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
        return {f"{name}_{figure}": value for figure, value in statistics.items()}


class EpisodeTable:
    """A CSV file with a line for every episode, however many there are: few wait in memory, none keeps it open.

    Args:
        path: The file.
        before: Episodes of the run that are in another file.
    """

    COLUMNS = ("episode", "timestep", "env", "reward", "length", *STATISTICS)
    _AT_ONCE = 500

    def __init__(self, path: Path, *, before: int = 0) -> None:
        self._path = path
        self._lines = before
        self._waiting = [",".join(self.COLUMNS)]

    @property
    def lines(self) -> int:
        """The number of the last episode."""
        return self._lines

    def add(self, episode: Episode) -> None:
        """Add a line; a figure that does not exist stays empty."""
        self._lines += 1
        statistics = ",".join(str(episode.statistics.get(name, "")) for name in STATISTICS)
        self._waiting.append(
            f"{self._lines},{episode.timestep},{episode.env},{episode.reward},{episode.length},{statistics}"
        )
        if len(self._waiting) >= self._AT_ONCE:
            self.write()

    def write(self) -> Path:
        """Return the path of the file, with all lines in it."""
        lines, self._waiting = self._waiting, []
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        return self._path
