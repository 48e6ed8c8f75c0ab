"""How an agent's account is read and judged: the callback's arguments for it, checked."""

from __future__ import annotations

from dataclasses import dataclass

from tracking_callbacks._episodes.market import Benchmark
from tracking_callbacks._episodes.returns import Info, Memory, Returns, ReturnsSource, choose_source

__all__ = ["AccountSettings"]


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """What the trading statistics of a run are made from.

    Attributes:
        returns: Source of the return series.
        periods_per_year: Steps of the environment in a year, for the annualised statistics.
        initial_account: Account value at the start of each episode, where the source needs it.
        benchmark: What evaluations are compared with.
        trials: Number of trials that the agent is one of.
    """

    returns: Returns = "auto"
    periods_per_year: float = 252
    initial_account: float | None = None
    benchmark: Benchmark = "auto"
    trials: int = 1

    def source(self, info: Info, memory: Memory | None) -> ReturnsSource:
        """Return the source of returns in environments whose first step returned `info`; see `choose_source`."""
        return choose_source(self.returns, info, initial_account=self.initial_account, memory=memory)
