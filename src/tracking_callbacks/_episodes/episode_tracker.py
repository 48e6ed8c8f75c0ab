"""The episodes of a training run, step by step. Knows numpy, and no reinforcement-learning library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tracking_callbacks import finance
from tracking_callbacks._episodes.returns import MEMORIES, Info, Kind, Memory, ReturnsSource, number
from tracking_callbacks._episodes.statistics import STATISTICS, Series, statistics_over_episodes, trading_statistics

__all__ = ["Episode", "EpisodeTracker", "StepBuffer"]


_COLUMNS = {"episode", "timestep", "env", "reward", "length", *STATISTICS}


class Episode(NamedTuple):  # made in a fifth of the time that a frozen dataclass takes
    """A finished episode.

    Attributes:
        timestep: Steps over all environments when it ended.
        env: Index of its environment.
        reward: Sum of its raw rewards.
        length: Number of its steps.
        statistics: Those of `statistics.STATISTICS` that exist.
        skipped: Why its return series could not be used; None if it was used.
        extras: What else the environment said of the episode, by name: keywords of its monitor, ``is_success``.
    """

    timestep: int
    env: int
    reward: float
    length: int
    statistics: Mapping[str, float]
    skipped: str | None
    extras: Mapping[str, float] = {}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that a run plots for this episode."""
        plotted = {"episode/reward": self.reward, "episode/length": float(self.length)}
        plotted |= {f"episode/{name}": value for name, value in self.extras.items()}
        return plotted | {f"episode/{name}": value for name, value in self.statistics.items()}


def _extras(info: Info, monitored: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what a ``Monitor(info_keywords=…)`` added to its episode, and ``is_success``; numbers only."""
    if monitored is None and "is_success" not in info:
        return {}
    said = dict(monitored or {})
    if "is_success" in info:
        said["is_success"] = info["is_success"]
    numbers = {str(name): number(value) for name, value in said.items() if name not in ("r", "l", "t")}
    known = {f"info_{name}" if name in _COLUMNS else name: value for name, value in numbers.items()}
    return {name: value for name, value in known.items() if math.isfinite(value)}


class StepBuffer:
    """Rewards and values of the steps of running episodes: one row per step, one column per environment.

    Memory grows with the longest episode, never with the length of the training run, and stops at `limit` numbers. Of
    an episode that is longer than that, only the total reward and the length stay known.
    """

    def __init__(self, n_envs: int, *, rows: int = 1024, limit: int = 4_000_000) -> None:
        self._single = n_envs == 1
        self._rows = rows
        self._max_rows = max(rows, limit // n_envs)
        self._rewards = np.empty((rows, n_envs))
        self._values = np.full((rows, n_envs), math.nan)
        self._next = 0
        self._window = 0  # row of the first step of the present window
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
            except (TypeError, ValueError):  # an environment returned something that is not a number
                self._values[row] = [number(value) for value in values]
        self._next = row + 1

    def length(self, env: int) -> int:
        """Return the number of steps of the running episode of `env`."""
        return self._cut_steps[env] + self._next - self._starts[env]

    def close(self, env: int) -> tuple[float, Series, Series, bool]:
        """End the running episode of `env`.

        Returns:
            The sum of its rewards, its rewards and its values (views, valid until the next step), and whether the
            two series are complete.
        """
        start, self._starts[env] = self._starts[env], self._next
        rewards, values = self._rewards[start : self._next, env], self._values[start : self._next, env]
        total, complete = self._cut_rewards[env] + float(rewards.sum()), self._cut_steps[env] == 0
        self._cut_rewards[env], self._cut_steps[env] = 0.0, 0
        return total, rewards, values, complete

    def begin_window(self) -> None:
        """Begin a window of steps."""
        self._window = self._next

    def window(self) -> tuple[Series, list[tuple[Series, float]]]:
        """Return what the present window holds.

        Returns:
            The rewards of its steps, shape (steps, environments), and for each environment the values of the running
            episode in it with the value before the first of them, NaN if there is none. They are views.
        """
        start = self._window
        firsts = [max(start, begun) for begun in self._starts]
        values = [
            (self._values[first : self._next, env], float(self._values[first - 1, env]) if first > begun else math.nan)
            for env, (first, begun) in enumerate(zip(firsts, self._starts, strict=True))
        ]
        return self._rewards[start : self._next], values

    def running(self, env: int) -> Series:
        """Return the values of the running episode of `env` as far as they are kept, a view."""
        return self._values[self._starts[env] : self._next, env]

    def total_reward(self) -> float:
        """Return the sum of all rewards that were ever added, without NaN."""
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
        self._window = max(self._window - first, 0)
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
        periods_per_year: For the annualised statistics.
        memory: Returns an attribute of an environment, for a source that reads what environments remember.

    Attributes:
        source: Where returns come from.
        last_equity: Account values of the episode that was closed last, from its reset on; None if it has none.
        last_returns: Its returns, a view that is valid until the next step; None if they could not be used.
    """

    def __init__(
        self, n_envs: int, source: ReturnsSource, periods_per_year: float, memory: Memory | None = None
    ) -> None:
        self.n_envs = n_envs
        self.source = source
        self.last_equity: Series | None = None
        self._key, self._step_return = source.key, source.step_return  # read at every step
        self._periods = periods_per_year
        self.last_returns: Series | None = None
        self._steps = StepBuffer(n_envs)
        self._whole = [False] * n_envs
        self._first_values = [math.nan] * n_envs
        self._memory = memory if source.kind is Kind.MEMORY else None
        self._memories: list[dict[str, Any]] = [{} for _ in range(n_envs)]

    def begin(self, env: int, reset_info: Info | None) -> None:
        """Note that the environment `env` was reset."""
        self._whole[env] = True
        self._first_values[env] = self.source.first_value(reset_info)

    def interrupt(self) -> None:
        """Note that there was a pause, in which anything may have happened to the environments."""
        self._whole = [self._whole[env] and self._steps.length(env) == 0 for env in range(self.n_envs)]

    def add_step(self, rewards: Any, infos: Sequence[Info]) -> None:
        """Add a step of every environment, with raw rewards."""
        key, step_return, nan = self._key, self._step_return, math.nan
        values: list[Any] | None = None
        if key is not None:
            # In Python 3.11 a comprehension costs a function call.
            values = [infos[0].get(key, nan)] if self.n_envs == 1 else [info.get(key, nan) for info in infos]
        elif step_return is not None:
            values = [step_return(info, reward) for info, reward in zip(infos, rewards, strict=True)]
        self._steps.append(rewards, values)
        if self._memory is not None:
            self._read_memories(self._memory)

    def _read_memories(self, memory: Memory) -> None:
        """Keep the lists of the running episodes: an environment appends to them, and begins new ones at its reset."""
        for env in range(self.n_envs):
            if self._steps.length(env) == 1:
                self._memories[env] = {name: memory(env, name) for name in MEMORIES}

    def running(self) -> int:
        """Return how many episodes are under way."""
        return sum(length > 0 for length in self.lengths())

    def lengths(self) -> list[int]:
        """Return the number of steps of each running episode, one per environment."""
        return [self._steps.length(env) for env in range(self.n_envs)]

    def begin_window(self) -> None:
        """Begin a window of steps."""
        self._steps.begin_window()

    def window_statistics(self) -> dict[str, float]:
        """Return the statistics of the steps since `begin_window`, over all environments.

        ``reward_mean``, ``_min``, ``_max``, ``_std`` and ``_count`` are those of the rewards; the others, see
        `statistics.STATISTICS`, those of the returns of the running episodes.
        """
        rewards, values = self._steps.window()
        finite = rewards[np.isfinite(rewards)]
        statistics: dict[str, float] = {}
        if finite.size:
            numbers = {"mean": finite.mean(), "min": finite.min(), "max": finite.max(), "std": finite.std()}
            statistics = {f"reward_{name}": float(number) for name, number in numbers.items()}
            statistics["reward_count"] = float(finite.size)
        if self.source.kind is Kind.EQUITY:
            series = [finance.returns_from_equity(np.concatenate(([before], inside))) for inside, before in values]
        elif self.source.kind is Kind.RETURN:
            series = [inside for inside, _ in values]
        else:
            series = [self._returns_in_window(rewards[:, env]) for env in range(self.n_envs)]
        known = [one[np.isfinite(one)] for one in series]
        return statistics | statistics_over_episodes(
            [one for one in known if one.size], periods_per_year=self._periods, compounded=self.source.declared
        )

    def _returns_in_window(self, rewards: Series) -> Series:
        """Return what the rewards of a window say of returns; nothing where that depends on the steps before it."""
        match self.source.kind:
            case Kind.REWARD if not finance.looks_like_levels(rewards):
                return rewards
            case Kind.LOG:
                return np.expm1(rewards)
            case Kind.EQUITY_REWARD:
                return finance.returns_from_equity(rewards)
            case _:
                return np.empty(0)

    def equity_under_way(self) -> Series | None:
        """Return the account values of the longest running episode, from its reset on; None if it has none."""
        if self.source.kind is not Kind.EQUITY:
            return None
        env = int(np.argmax(self.lengths()))
        values = np.concatenate(([self._first_values[env]], self._steps.running(env)))
        known = values[np.isfinite(values)]
        return known if known.size > 1 else None

    def total_reward(self) -> float:
        """Return the sum of all raw rewards so far, including those of unfinished episodes."""
        return self._steps.total_reward()

    def finish(self, env: int, timestep: int, info: Info, reset_info: Info | None) -> Episode | None:
        """Close the episode of `env` and begin its next one.

        Args:
            env: Index of the environment.
            timestep: Steps over all environments by now.
            info: Info of the last step; a monitor's ``info["episode"]`` takes precedence over what was summed up here.
            reset_info: Info of the reset that has already followed.

        Returns:
            None for an episode that was joined midway, if no monitor knows the rest of it.
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
            returns = self._returns(env, rewards, values, first_value)
            finite = math.isfinite(returns.sum()) or np.isfinite(returns).all()  # the sum alone costs a third
            skipped = None if finite else "missing or infinite values"
            if skipped is None:
                self.last_returns = returns
                statistics = trading_statistics(
                    returns, periods_per_year=self._periods, compounded=self.source.declared
                )
            is_reward = self.source.kind is Kind.REWARD and "sharpe_ratio" in statistics
            if is_reward and (reason := finance.looks_like_levels(returns)):
                skipped, statistics, self.last_returns = f"rewards that are no returns: {reason}", {}, None
        return Episode(timestep, env, reward, length, statistics, skipped, _extras(info, monitored))

    def _returns(self, env: int, rewards: Series, values: Series, first_value: float) -> Series:
        kind = self.source.kind
        if kind is Kind.REWARD:
            return rewards
        if kind is Kind.RETURN:
            return values
        if kind is Kind.MEMORY:
            return self._remembered(env)
        if kind is Kind.EQUITY:
            known = math.isfinite(first_value)
            self.last_equity = np.concatenate(([first_value], values)) if known else values.copy()
        else:
            self.last_equity = self.source.account(rewards)
            if kind is Kind.LOG:
                return np.expm1(rewards)
        assert self.last_equity is not None
        return finance.returns_from_equity(self.last_equity)

    def _remembered(self, env: int) -> Series:
        """Return the returns that the environment has remembered: its own list, or those of its account values."""
        known = {
            name: np.array([number(value) for value in values], dtype=np.float64)
            for name, values in self._memories[env].items()
            if isinstance(values, list)
        }
        returns, account = (known.get(name) for name in MEMORIES)
        if account is not None and account.size > 1:
            self.last_equity = account
        if returns is not None:
            return returns
        return np.empty(0) if account is None else finance.returns_from_equity(account)
