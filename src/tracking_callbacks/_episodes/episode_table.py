"""The table of all episodes of a run, as a file."""

from __future__ import annotations

from pathlib import Path

from tracking_callbacks._episodes.episode_tracker import Episode
from tracking_callbacks._episodes.statistics import STATISTICS

__all__ = ["EpisodeTable"]

_NO_STATISTICS = "," * (len(STATISTICS) - 1)


class EpisodeTable:
    """A CSV file with one line per episode.

    Lines are collected in memory and written a few hundred at a time; the file is closed in between. What the
    environment says of its first episode (`Episode.extras`) becomes further columns.

    Args:
        path: The file.
        before: How many episodes of the run are in another file already.
    """

    COLUMNS = ("episode", "timestep", "env", "reward", "length", *STATISTICS)
    _AT_ONCE = 500

    def __init__(self, path: Path, *, before: int = 0) -> None:
        self._path = path
        self._lines = before
        self._extras: list[str] | None = None
        self._waiting: list[str] = []

    @property
    def lines(self) -> int:
        """Number of the last episode."""
        return self._lines

    def add(self, episode: Episode) -> None:
        """Add a line; a statistic that does not exist stays empty."""
        self._lines += 1
        if self._extras is None:
            self._begin(list(episode.extras))
        assert self._extras is not None
        known = episode.statistics
        statistics = ",".join([str(known.get(name, "")) for name in STATISTICS]) if known else _NO_STATISTICS
        extras = "".join(f",{episode.extras.get(name, '')}" for name in self._extras)
        self._waiting.append(
            f"{self._lines},{episode.timestep},{episode.env},{episode.reward},{episode.length},{statistics}{extras}"
        )
        if len(self._waiting) >= self._AT_ONCE:
            self.write()

    def write(self) -> Path:
        """Write the waiting lines, and return the path of the file."""
        if self._extras is None:
            self._begin([])
        lines, self._waiting = self._waiting, []
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        return self._path

    def _begin(self, extras: list[str]) -> None:
        self._extras = extras
        # A name may hold a comma or a quote.
        names = [f'"{name.replace(chr(34), chr(34) * 2)}"' if set(name) & set(',"\n') else name for name in extras]
        self._waiting.append(",".join([*self.COLUMNS, *names]))
