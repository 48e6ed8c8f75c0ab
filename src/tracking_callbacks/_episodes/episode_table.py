"""The table of all episodes of a run, as a file."""

from __future__ import annotations

from pathlib import Path

from tracking_callbacks._episodes.episode_tracker import Episode
from tracking_callbacks._episodes.statistics import STATISTICS

__all__ = ["EpisodeTable"]


class EpisodeTable:
    """A CSV file with one line per episode.

    Lines are collected in memory and written a few hundred at a time; the file is closed in between.

    Args:
        path: The file.
        before: How many episodes of the run are in another file already.
    """

    COLUMNS = ("episode", "timestep", "env", "reward", "length", *STATISTICS)
    _AT_ONCE = 500

    def __init__(self, path: Path, *, before: int = 0) -> None:
        self._path = path
        self._lines = before
        self._waiting = [",".join(self.COLUMNS)]

    @property
    def lines(self) -> int:
        """Number of the last episode."""
        return self._lines

    def add(self, episode: Episode) -> None:
        """Add a line; a statistic that does not exist stays empty."""
        self._lines += 1
        statistics = ",".join(str(episode.statistics.get(name, "")) for name in STATISTICS)
        self._waiting.append(
            f"{self._lines},{episode.timestep},{episode.env},{episode.reward},{episode.length},{statistics}"
        )
        if len(self._waiting) >= self._AT_ONCE:
            self.write()

    def write(self) -> Path:
        """Write the waiting lines, and return the path of the file."""
        lines, self._waiting = self._waiting, []
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        return self._path
