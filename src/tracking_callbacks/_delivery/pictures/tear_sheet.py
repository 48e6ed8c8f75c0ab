"""Draws the tear sheet of an evaluation: what a trading agent earned, next to its benchmark, and how.

The sheet is one page without references to other files, so it opens offline. Quantstats and pyfolio are its models.
"""

from __future__ import annotations

import base64
import datetime
import html
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking_callbacks._delivery.pictures.canvas import (
    GRID,
    INK,
    PALETTE,
    Panel,
    Pen,
    add_note,
    draw_line,
    finish,
    frame,
    label_axes,
    linear_ticks,
    new_figure,
    number_texts,
    png,
)
from tracking_callbacks._delivery.pictures.equity import drawdown
from tracking_callbacks._delivery.pictures.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["importance_bars", "sheet_figures", "tear_sheet"]

_AGENT, _BENCHMARK = Pen(PALETTE[0]), Pen(PALETTE[4], dash="--")
_MOST_BARS = 25
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Name of a statistic, its text, and how it is shown.
_STATISTICS: tuple[tuple[str, str, str], ...] = (
    ("total_return", "Total return", "percent"),
    ("benchmark_total_return", "Benchmark's total return", "percent"),
    ("excess_return", "Excess return", "percent"),
    ("annual_return", "Annual return", "percent"),
    ("benchmark_annual_return", "Benchmark's annual return", "percent"),
    ("volatility", "Volatility (annual)", "share"),
    ("sharpe_ratio", "Sharpe ratio", "number"),
    ("sharpe_standard_error", "its standard error (Lo)", "number"),
    ("probabilistic_sharpe_ratio", "Probability that it is above 0", "share"),
    ("deflated_sharpe_ratio", "the same, after selection", "share"),
    ("sortino_ratio", "Sortino ratio", "number"),
    ("calmar_ratio", "Calmar ratio", "number"),
    ("omega_ratio", "Omega ratio", "number"),
    ("information_ratio", "Information ratio", "number"),
    ("alpha", "Alpha (annual)", "percent"),
    ("beta", "Beta", "number"),
    ("max_drawdown", "Largest drawdown", "percent"),
    ("max_drawdown_length", "Longest drawdown (steps)", "count"),
    ("value_at_risk_95", "Value at risk, 95 %", "percent"),
    ("conditional_value_at_risk_95", "Conditional value at risk, 95 %", "percent"),
    ("skew", "Skew", "number"),
    ("tail_ratio", "Tail ratio", "number"),
    ("trades", "Trades", "count"),
    ("win_rate", "Trades with a gain", "share"),
    ("profit_factor", "Profit factor", "number"),
    ("mean_holding_time", "Mean holding time (steps)", "number"),
    ("exposure", "Exposure", "share"),
    ("turnover", "Turnover (per year)", "number"),
    ("fees", "Fees paid", "number"),
)

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #262626; max-width: 1080px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } p.note { color: #666; margin: 0 0 18px; }
div.row { display: flex; gap: 28px; flex-wrap: wrap; align-items: flex-start; }
div.row > div { flex: 1 1 300px; } div.row > div.wide { flex: 2 1 560px; }
img { width: 100%; height: auto; margin-bottom: 12px; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: 3px 6px; border-bottom: 1px solid #e3e3e3; text-align: left; }
td:last-child, td.n { text-align: right; font-variant-numeric: tabular-nums; } details { margin: 16px 0; }
"""


def tear_sheet(content: Mapping[str, Any]) -> str:
    """Return the page of one episode.

    Args:
        content: ``title``, ``statistics`` of the evaluation by name, ``series`` of the episode (``returns``, and where
            they are known ``benchmark``, ``prices``, ``positions``, ``fees``, ``dates``), its ``trades`` as rows,
            ``episodes`` (their number) and ``periods_per_year``.
    """
    series = content["series"]
    returns = _known(series["returns"])
    dates = series.get("dates") or []
    span = f", {_day(dates[0])} to {_day(dates[-1])}" if dates else ""
    notes = [f"{returns.size} steps{span}", f"{content['periods_per_year']:g} steps a year"]
    if content["episodes"] > 1:
        shown = f"the pictures show the last of {content['episodes']} episodes"
        notes.append(f"{shown}, the statistics are those of all, trades and fees per episode")
    notes.append("returns are after the fees that the account value holds" if "fees" in series else "no fees are known")
    pictures = "".join(
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}">'
        for name, figure in sheet_figures(content).items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(content["title"])}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(content['title'])}</h1>"
        f'<p class="note">{html.escape("; ".join(notes))}</p><div class="row"><div class="wide">{pictures}</div>'
        f"<div>{_statistics_table(content['statistics'])}</div></div>{_trades_table(content['trades'])}</body></html>"
    )


def sheet_figures(content: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the pictures of the sheet by name; those that the series do not allow are left out."""
    series = {name: _known(values) for name, values in content["series"].items() if name != "dates"}
    dates = content["series"].get("dates") or []
    returns = series["returns"]
    figures = {
        "performance": _performance(returns, series.get("benchmark")),
        "rolling_sharpe": _rolling_sharpe(returns, float(content["periods_per_year"])),
        "monthly_returns": _monthly_returns(returns, dates),
        "positions": _positions(series, content["trades"]),
        "distribution": _distribution(returns),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    if ticks := _date_ticks(dates):
        for axes in (axes for figure in drawn.values() for axes in figure.axes if axes.get_xlabel() == "step"):
            steps = axes.get_xticks()
            axes.set_xticks(steps, [ticks[int(step) - 1] if 1 <= step <= len(ticks) else "" for step in steps])
            axes.set_xlabel("date")
    return drawn


def importance_bars(importance: Mapping[str, float], *, note: str = "") -> Figure | None:
    """Draw how much the decision depends on each feature; of many features, the most important ones.

    Args:
        importance: Mean change of the decision by the name of the feature.
        note: How it was measured.
    """
    ranked = sorted(importance.items(), key=lambda item: item[1])[-_MOST_BARS:]
    if not ranked:
        return None
    figure = new_figure(1.4 + 0.27 * len(ranked))
    axes = figure.subplots()
    names, values = [name for name, _ in ranked], [value for _, value in ranked]
    axes.barh(range(len(ranked)), values, color=PALETTE[0], height=0.7)
    frame(axes)
    axes.set_yticks(range(len(ranked)), [name if len(name) < 34 else f"{name[:33]}…" for name in names])
    most = 1.05 * max(1e-6, *values)
    ticks = linear_ticks(0.0, most, count=6)
    axes.set_xticks(ticks, number_texts(ticks))
    axes.set_xlim(0.0, most)
    axes.set_title("Feature importance", loc="left", fontsize=13, fontweight="bold", color=INK, pad=20)
    shown = f"; the first {len(ranked)} of {len(importance)}" if len(importance) > len(ranked) else ""
    how = note or "mean change of the decision when a feature is exchanged between observations"
    add_note(axes, f"{how}{shown}")
    return finish(figure, legend=False)


def _performance(returns: Series, benchmark: Series | None) -> Figure:
    figure = new_figure(8.4)
    linear, log, below = figure.subplots(3, 1, height_ratios=[1.5, 1.2, 1.0])
    steps = np.arange(returns.size + 1, dtype=np.float64)
    wealth = {"agent": (_wealth(returns), _AGENT)}
    if benchmark is not None:
        wealth["benchmark"] = (_wealth(benchmark), _BENCHMARK)
    for name, (values, pen) in wealth.items():
        draw_line(linear, steps, values, pen=pen, label=name)
        draw_line(log, steps, np.where(values > 0.0, values, np.nan), pen=pen, label="_")
        draw_line(below, steps, 100.0 * drawdown(values), pen=pen, label="_", width=1.1)
    label_axes(linear, Panel("Wealth: what 1 at the start became", "step", "wealth"))
    label_axes(log, Panel("The same on a logarithmic scale", "step", "wealth"), log=bool((_wealth(returns) > 0).all()))
    label_axes(below, Panel("Drawdown", "step", "below the peak (%)"), bounds=(-math.inf, 0.0))
    return finish(figure)


def _rolling_sharpe(returns: Series, periods_per_year: float) -> Figure | None:
    window = int(min(max(periods_per_year / 2, 20), returns.size // 2))
    if window < 10:
        return None
    ones = np.ones(window)
    sums, squares = (np.convolve(np.nan_to_num(values), ones, "valid") for values in (returns, returns**2))
    variance = (squares - sums**2 / window) / (window - 1)
    ratio = np.full(sums.shape, np.nan)
    clear = variance > 1e-12 * np.maximum(squares / window, 1e-300)
    np.divide(math.sqrt(periods_per_year) * sums / window, np.sqrt(np.abs(variance)), out=ratio, where=clear)
    figure = new_figure(2.9)
    axes = figure.subplots()
    draw_line(axes, np.arange(window, returns.size + 1, dtype=np.float64), ratio, pen=_AGENT, label="Sharpe ratio")
    label_axes(axes, Panel(f"Rolling Sharpe ratio of {window} steps", "step", "Sharpe ratio"))
    axes.axhline(0.0, color=INK, linewidth=0.8)
    return finish(figure, legend=False)


def _monthly_returns(returns: Series, dates: Sequence[str]) -> Figure | None:
    months: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    for text, value in zip(dates, returns, strict=False):
        try:
            day = datetime.date.fromisoformat(text[:10])
        except ValueError:
            return None
        months[day.year, day.month] *= 1.0 + (0.0 if math.isnan(value) else value)
    if len(months) < 2:
        return None
    years = sorted({year for year, _ in months})
    table = np.full((len(years), 12), np.nan)
    for (year, month), growth in months.items():
        table[years.index(year), month - 1] = 100.0 * (growth - 1.0)
    figure = new_figure(1.3 + 0.34 * len(years))
    axes = figure.subplots()
    most = max(float(np.nanmax(np.abs(table))), 1e-9)
    axes.imshow(table, cmap="RdYlGn", vmin=-most, vmax=most, aspect="auto")
    frame(axes)
    axes.set_xticks(range(12), _MONTHS)
    axes.set_yticks(range(len(years)), [str(year) for year in years])
    for row, column in zip(*np.nonzero(np.isfinite(table)), strict=True):
        text = f"{table[row, column]:+.1f}".replace("-", "−")
        ink = "white" if abs(table[row, column]) > 0.7 * most else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_title("Monthly returns (%)", loc="left", fontsize=13, fontweight="bold", color=INK, pad=8)
    return finish(figure, legend=False)


def _positions(series: Mapping[str, Series], trades: Sequence[Mapping[str, Any]]) -> Figure | None:
    positions, prices = series.get("positions"), series.get("prices")
    if positions is None:
        return None
    figure = new_figure(5.2 if prices is not None else 2.6)
    panels = figure.subplots(2, 1, height_ratios=[1.8, 1.0]) if prices is not None else [figure.subplots()]
    if prices is not None:
        after = prices[-positions.size :]
        draw_line(
            panels[0], np.arange(1, after.size + 1, dtype=np.float64), after, pen=Pen(INK), label="price", width=1.0
        )
        _mark(panels[0], after, [trade["entry_step"] for trade in trades], "^", PALETTE[2], "position opened")
        closed = [trade["exit_step"] for trade in trades if trade["closed"]]
        _mark(panels[0], after, closed, "v", PALETTE[1], "position closed")
        label_axes(panels[0], Panel("Price and trades", "step", "price"))
    held = np.nan_to_num(positions)
    steps = np.arange(1, held.size + 1, dtype=np.float64)
    panels[-1].fill_between(steps, held, 0.0, step="mid", color=PALETTE[0], alpha=0.5, linewidth=0.0)
    draw_line(panels[-1], steps, held, pen=_AGENT, label="_", width=0.6)
    label_axes(panels[-1], Panel("Position", "step", "share of the account"))
    return finish(figure)


def _mark(axes: Axes, prices: Series, steps: Sequence[int], marker: str, color: str, label: str) -> None:
    inside = [step for step in steps if 0 <= step < prices.size]
    if inside:
        x = np.array(inside, dtype=np.float64) + 1.0
        axes.plot(x, prices[inside], linestyle="none", marker=marker, markersize=5, color=color, label=label, zorder=4)


def _distribution(returns: Series) -> Figure | None:
    known = 100.0 * returns[np.isfinite(returns)]
    if known.size < 10 or float(np.ptp(known)) == 0.0:
        return None
    figure = new_figure(2.9)
    axes = figure.subplots()
    counts, edges = np.histogram(known, bins=min(60, max(10, known.size // 15)))
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=PALETTE[0], alpha=0.75)
    risk = float(np.percentile(known, 5))
    axes.axvline(risk, color=PALETTE[1], linewidth=1.6, label=f"value at risk, 95 %: {risk:.2f} %".replace("-", "−"))
    frame(axes)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    x_ticks = linear_ticks(float(edges[0]), float(edges[-1]), count=8)
    y_ticks = linear_ticks(0.0, float(counts.max()), count=5, integer=True)
    axes.set_xticks(x_ticks, number_texts(x_ticks))
    axes.set_yticks(y_ticks, number_texts(y_ticks))
    axes.set_title("Distribution of the returns", loc="left", fontsize=13, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel("return of a step (%)", fontsize=10, color=INK)
    axes.set_ylabel("steps", fontsize=10, color=INK)
    return finish(figure)


def _day(date: str) -> str:
    """Return a date without a midnight."""
    return re.sub(r"[T ]00:00(:00(\.0+)?)?$", "", date)


def _date_ticks(dates: Sequence[str]) -> list[str]:
    """Return a short text for each date: the day, or the time if all are of one day; none if they are no dates."""
    try:
        moments = [datetime.datetime.fromisoformat(date) for date in dates]
    except ValueError:
        return []
    days = {moment.date() for moment in moments}
    return [f"{moment:%H:%M}" if len(days) == 1 else f"{moment:%Y-%m-%d}" for moment in moments]


def _known(values: Sequence[Any]) -> Series:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _wealth(returns: Series) -> Series:
    return np.concatenate(([1.0], np.cumprod(1.0 + np.nan_to_num(returns))))


def _statistics_table(statistics: Mapping[str, float]) -> str:
    rows = [
        f"<tr><td>{html.escape(text)}</td><td>{_shown(statistics[name], kind)}</td></tr>"
        for name, text, kind in _STATISTICS
        if name in statistics
    ]
    return f"<table>{''.join(rows)}</table>"


def _trades_table(trades: Sequence[Mapping[str, Any]]) -> str:
    if not trades:
        return ""
    shown = trades[-500:]
    titles = ("Side", "Entry", "Exit", "Steps", "Entry price", "Exit price", "Return")
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(f"<tr>{''.join(f'<td class=n>{cell}</td>' for cell in _cells(trade))}</tr>" for trade in shown)
    more = f", the last {len(shown)}" if len(trades) > len(shown) else ""
    return f"<details><summary>{len(trades)} trades{more}</summary><table><tr>{head}</tr>{rows}</table></details>"


def _cells(trade: Mapping[str, Any]) -> list[str]:
    return [
        html.escape(str(trade["side"])),
        html.escape(str(trade["entry"])),
        html.escape(str(trade["exit"])) if trade["closed"] else "open",
        str(trade["periods"]),
        _shown(trade["entry_price"], "number"),
        _shown(trade["exit_price"], "number"),
        _shown(trade["return"], "percent"),
    ]


def _shown(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    count = f"{value:,.1f}".removesuffix(".0")  # a mean over the episodes may be no whole number
    texts = {"percent": f"{value:+,.2%}", "share": f"{value:,.2%}", "count": count, "number": f"{value:,.3g}"}
    return texts[kind].replace("-", "−")
