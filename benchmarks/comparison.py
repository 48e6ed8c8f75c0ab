"""What a row of the comparison is, and how it is run: the contenders take turns, round after round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bench import Bench

__all__ = ["Bar", "Column", "Figures", "Group", "Row", "Samples", "measure"]

Figures = dict[str, float]
Taken = dict[str, dict[str, list[float]]]  # contender, number, one value per round


class Samples:
    """The numbers of all rounds of a group."""

    def __init__(self, taken: Taken) -> None:
        self.taken = taken

    def values(self, contender: str, figure: str) -> list[float]:
        """Return one value per round, or none if the contender lacks this number or is newer than the measurement."""
        return self.taken.get(contender, {}).get(figure, [])

    def rounds(self) -> int:
        """Return how many rounds each contender took part in."""
        return max((len(values) for figures in self.taken.values() for values in figures.values()), default=0)

    def median(self, contender: str, figure: str) -> float:
        """Return the median of the rounds, or NaN without rounds."""
        return statistics.median(self.values(contender, figure) or [math.nan])

    def worst(self, contender: str, figure: str) -> float:
        """Return the largest value of the rounds, or NaN without rounds."""
        return max(self.values(contender, figure), default=math.nan)

    def ratio(self, figure: str, contender: str, to: str) -> float:
        """Return the median of the rounds' ratios, or NaN without rounds.

        Both values of a pair come from the same round, so a disturbance of the machine affects both.
        """
        ones, others = self.values(contender, figure), self.values(to, figure)
        if not ones or not others:
            return math.nan
        return statistics.median(one / other for one, other in zip(ones, others, strict=True))


@dataclass(frozen=True)
class Column:
    """A column of a group's table."""

    figure: str
    head: str
    digits: int = 1


@dataclass(frozen=True)
class Bar:
    """A bar that the package should reach.

    Attributes:
        what: Its description in the report.
        limit: The bar; None prints the number without one.
        value: Computes the number from the group's samples.
        at_least: The limit is a minimum instead of a maximum.
    """

    what: str
    value: Callable[[Samples], float]
    limit: float | None = None
    at_least: bool = False

    def met(self, value: float) -> bool | None:
        """Return whether `value` reaches the bar, or None without a bar."""
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work.

    Attributes:
        title: Heads the table; benchmarks/results/ stores the numbers under it.
        contenders: Each does the work once, in a fresh process, and returns its numbers.
    """

    title: str
    contenders: Mapping[str, Callable[[Bench], Figures]]
    columns: Sequence[Column]
    bars: Sequence[Bar] = ()


@dataclass(frozen=True)
class Row:
    """One row of the comparison; `method` says how it is measured, for the report."""

    name: str
    title: str
    method: str
    groups: Sequence[Group]


def measure(group: Group, bench: Bench, rounds: int, say: Callable[[str], None]) -> Taken:
    """Let the contenders of a group take turns: A B C A B C …"""
    taken: Taken = {contender: {} for contender in group.contenders}
    for turn in range(rounds):
        for contender, work in group.contenders.items():
            figures = work(bench)
            for figure, value in figures.items():
                taken[contender].setdefault(figure, []).append(value)
            shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
            say(f"  round {turn + 1}, {contender}: {shown}")
    return taken
