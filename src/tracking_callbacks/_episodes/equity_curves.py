"""The account values of the last episodes, as a table and a picture of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks._runs.run import Run

__all__ = ["EquityCurves"]

_EPISODES = 5
_MOST_LINES = 100_000  # of all episodes together; takes a tenth of a second at the end of a training run


class EquityCurves:
    """Keeps the account values of the last five episodes."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=_EPISODES)

    def add(self, episode: int, equity: NDArray[np.float64]) -> None:
        """Add an episode.

        Args:
            episode: Its number.
            equity: Its account values from the reset on, shape (n,).
        """
        self._kept.append((episode, equity))

    def log(self, run: Run, folder: str = "", *, picture: str, label: str = "episode") -> None:
        """Log ``equity_curves.csv`` and have ``equity_curves.png`` drawn; without episodes, do nothing.

        Args:
            run: The run.
            folder: Where the table goes.
            picture: Where the picture goes.
            label: What the picture calls an episode, before its number.
        """
        if not self._kept:
            return
        table = "episode,step,equity\n" + "".join(self._lines())
        place = f"{folder}/equity_curves.csv" if folder else "equity_curves.csv"
        run.record("reports", lambda: run.log_text(table, place))
        run.draw("equity", picture, table, label=label)

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the table; of very long episodes, only every n-th step and the last one."""
        stride = -(-sum(len(equity) for _, equity in self._kept) // _MOST_LINES)
        for episode, equity in self._kept:
            last = len(equity) - 1
            for step in (*range(0, last, stride), last):
                yield f"{episode},{step},{equity[step]}\n"
