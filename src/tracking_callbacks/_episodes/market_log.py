"""Logs what an evaluation of a trading agent is judged by: the tear sheet, the trades, the importance of features."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping

from tracking_callbacks._episodes.market import MarketEpisode, trades_of
from tracking_callbacks._runs.run import Run

__all__ = ["log_importance", "log_market"]

_MOST_LINES = 20_000  # of the tear sheet's series


def log_market(
    run: Run,
    place: str,
    episodes: Mapping[int, MarketEpisode],
    statistics: Mapping[str, float],
    periods_per_year: float,
) -> None:
    """Log the trades of an evaluation as ``trades.csv`` and ``trades.json``, and have its tear sheet drawn.

    The tear sheet shows the last episode. An evaluation without a known account logs nothing.

    Args:
        run: The run.
        place: Folder of the evaluation.
        episodes: Episodes whose account is known, by their number.
        statistics: The statistics of the whole evaluation.
        periods_per_year: Steps of the environment in a year.
    """
    if not episodes:
        return
    if rows := [row for number, episode in episodes.items() for row in _rows(number, episode)]:
        table = _csv(rows[0], (row.values() for row in rows))
        run.record("reports", lambda: run.log_text(table, f"{place}/trades.csv"))
        run.record("reports", lambda: run.log_table(rows, f"{place}/trades.json"))
    number, last = max(episodes.items())
    if last.returns.size > 1:
        content = {
            "title": f"{' '.join(place.split('/')).capitalize().replace('step-', 'at step ')}, episode {number}",
            "episodes": len(episodes),
            "periods_per_year": periods_per_year,
            "statistics": dict(statistics),
            "series": _series(last),
            "trades": [row for row in rows if row["episode"] == number],
        }
        run.draw("tear_sheet", place, json.dumps(content))


def log_importance(run: Run, place: str, importance: Mapping[str, float]) -> None:
    """Log ``feature_importance.csv``, most important first, and have it drawn.

    Args:
        run: The run.
        place: Folder of the evaluation.
        importance: Change of the decision by the name of the feature.
    """
    ranked = sorted(importance.items(), key=lambda item: -item[1])
    table = _csv(("feature", "importance"), ranked)
    run.log_text(table, f"{place}/feature_importance.csv")
    run.draw("importance", place, table)


def _series(episode: MarketEpisode) -> dict[str, list[float | str | None]]:
    """Return the series of an episode, one value a step; of very long ones, the last part."""
    size = min(episode.returns.size, _MOST_LINES)
    series: dict[str, list[float | str | None]] = {"returns": _numbers(episode.returns, size)}
    for name in ("benchmark", "positions", "prices", "fees"):
        if (values := getattr(episode, name)) is not None and values.size >= size:
            series[name] = _numbers(values, size)
    if len(episode.dates) >= size:
        series["dates"] = list(episode.dates[-size:])
    return series


def _numbers(values: Iterable[float], size: int) -> list[float | str | None]:
    return [_or_none(float(value)) for value in list(values)[-size:]]


def _rows(number: int, episode: MarketEpisode) -> list[dict[str, float | str | bool | None]]:
    dates = episode.dates
    return [
        {
            "episode": number,
            "side": trade.side,
            "entry": dates[trade.entry] if dates else trade.entry,
            "exit": dates[trade.exit] if dates else trade.exit,
            "entry_step": trade.entry,
            "exit_step": trade.exit,
            "periods": trade.periods,
            "entry_price": _or_none(trade.entry_price),
            "exit_price": _or_none(trade.exit_price),
            "return": _or_none(trade.total_return),
            "closed": trade.closed,
        }
        for trade in trades_of(episode)
    ]


def _csv(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
