"""What all pictures share: size, colours, axes, ticks, legend, and the conversion to PNG.

Everything that a user's ``matplotlibrc`` could spoil (colours, fonts, LaTeX) is set explicitly, because
``matplotlib.rc_context`` would change it for every thread. Ticks are computed here and fixed, so that no label is an
offset ("+1.2e4"), none is LaTeX, and a user's names that contain ``$`` are shown literally.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking_callbacks._delivery.pictures.series import Series, envelope, isolated, running_mean, with_gaps

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ANYTHING",
    "DPI",
    "FAINT_INK",
    "GRID",
    "INK",
    "MAX_POINTS",
    "PALETTE",
    "Panel",
    "Pen",
    "add_note",
    "draw_curve",
    "draw_line",
    "finish",
    "frame",
    "label_axes",
    "linear_ticks",
    "log_ticks",
    "new_figure",
    "number_text",
    "number_texts",
    "png",
    "shorten",
    "step_texts",
]

DPI = 200  # twice the 100 dpi that the sizes in inches are designed for
MAX_POINTS = 2_000  # per line; the widest axes have about 1 600 pixels

INK, FAINT_INK, GRID = "#262626", "#666666", "#e3e3e3"
# Okabe and Ito's colours, distinguishable with all common kinds of colour blindness: https://jfly.uni-koeln.de/color/
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FONT = "DejaVu Sans"  # comes with matplotlib
ANYTHING = (-math.inf, math.inf)
NOT_FINITE = "NaN or infinite"

_MARKED = 60  # a line with at most this many points has a marker at each


@dataclass(frozen=True, slots=True)
class Pen:
    """How the lines of one series look.

    Attributes:
        color: Any matplotlib colour.
        marker: Shape of its points, if they are shown.
        dash: Line style.
    """

    color: str = PALETTE[0]
    marker: str = "o"
    dash: str = "-"


@dataclass(frozen=True, slots=True)
class Panel:
    """Texts of one panel.

    Attributes:
        title: Its title.
        x: What its x axis shows, with the unit.
        y: What its y axis shows, with the unit.
        note: A smaller line under the title.
    """

    title: str
    x: str
    y: str
    note: str = ""


def new_figure(height: float, width: float = 9.0, *, compress: bool = False) -> Figure:
    """Return an empty figure of `width` times `height` inches; `compress` is for panels with a fixed aspect ratio."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12, hspace=0.04, wspace=0.03, compress=compress)
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", edgecolor="white", layout=layout)


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG file, the same bytes for the same picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    # Not savefig, because that takes size and margins from rcParams. No "Software" entry, because that would make the
    # bytes depend on the version of matplotlib.
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return content.getvalue()


def draw_curve(
    axes: Axes, x: Series, y: Series, *, pen: Pen, label: str, window: int = 0, mean_label: str = ""
) -> None:
    """Draw a measured series: with markers, or as a faint line under its running mean.

    A value that is not finite becomes a gap in the line and a cross at the bottom.

    Args:
        axes: The axes to draw on.
        x: Steps in ascending order, shape (n,).
        y: Values, shape (n,).
        pen: How the lines look.
        label: Name of the values in the legend.
        window: Number of values in the running mean; 0 for none.
        mean_label: Name of the running mean in the legend.
    """
    values = with_gaps(y)
    if window:
        draw_line(axes, x, values, pen=pen, label=label, width=0.8, alpha=0.35)
        means = np.where(np.isnan(values), np.nan, running_mean(values, window))
        draw_line(axes, x, means, pen=pen, label=mean_label, width=2.0, zorder=3)
    else:
        draw_line(axes, x, values, pen=pen, label=label, markers=True)
    _draw_crosses(axes, x[np.isnan(values)], pen.color)


def draw_line(
    axes: Axes,
    x: Series,
    y: Series,
    *,
    pen: Pen,
    label: str,
    markers: bool = False,
    width: float = 1.6,
    alpha: float = 1.0,
    zorder: float = 2,
) -> None:
    """Draw a line of at most `MAX_POINTS` points. NaN is a gap; a single point between gaps gets a marker."""
    x, y = envelope(x, y, MAX_POINTS)
    looks: dict[str, Any] = {
        "color": pen.color,
        "alpha": alpha,
        "zorder": zorder,
        "markersize": 5,
        "markeredgewidth": 0,
    }
    shown = pen.marker if markers and y.size <= _MARKED else "none"
    axes.plot(x, y, linestyle=pen.dash, linewidth=width, marker=shown, label=label, **looks)
    lone = isolated(y)
    if lone and shown == "none":
        axes.plot(x[lone], y[lone], linestyle="none", marker=pen.marker, label="_lone", **looks)


def _draw_crosses(axes: Axes, x: Series, color: str) -> None:
    if not x.size:
        return
    shown = x[np.linspace(0, x.size - 1, min(x.size, 200)).astype(int)]
    axes.plot(
        shown,
        np.full(shown.shape, 0.03),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="x",
        markersize=6,
        markeredgewidth=1.4,
        color=color,
        label=NOT_FINITE,
        zorder=4,
    )


def label_axes(
    axes: Axes,
    panel: Panel,
    *,
    small: bool = False,
    log: bool = False,
    steps: tuple[float, float] | None = None,
    bounds: tuple[float, float] = ANYTHING,
) -> None:
    """Give `axes` texts, limits that fit what is drawn, ticks and a grid.

    Args:
        axes: The axes, with everything already drawn.
        panel: The texts.
        small: The panel has half of the figure's width.
        log: Use a logarithmic y axis; everything drawn must be positive.
        steps: First and last step of the x axis; by default those that are drawn.
        bounds: Smallest and largest possible value; no tick lies outside.
    """
    frame(axes)
    count = 5 if small else 7
    first, last = steps or _extent(axes, 0)
    if 0.0 <= first <= 0.5 * last:
        first = 0.0
    left, right = _widened(first, last, share=0.015, least=1.0)
    x_ticks = linear_ticks(max(left, 0.0) if first >= 0.0 else left, right, count=count, integer=True)
    low, high = _extent(axes, 1)
    if log:
        axes.set_yscale("log")
        share = (high / low) ** 0.05
        low, high = low / share, high * share
        y_ticks = log_ticks(low, high)
    else:
        low, high = _widened(low, high, share=0.06, least=0.05 * abs(high) or 0.05)
        slack = 0.02 * (high - low)  # for the width of a line along the bound
        low, high = max(low, bounds[0] - slack), min(high, bounds[1] + slack)
        y_ticks = [tick for tick in linear_ticks(low, high, count=count) if bounds[0] <= tick <= bounds[1]]
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_xticks(x_ticks, step_texts(x_ticks))
    axes.set_yticks(y_ticks, [number_text(tick) for tick in y_ticks] if log else number_texts(y_ticks))
    axes.minorticks_off()
    axes.grid(True, color=GRID, linewidth=0.8, linestyle="-", alpha=1.0)
    axes.set_axisbelow(True)
    title = shorten(panel.title, 40 if small else 80)
    size, pad = 11 if small else 13, 20 if panel.note else 8
    axes.set_title(title, loc="left", fontsize=size, fontweight="bold", color=INK, pad=pad)
    if panel.note:
        add_note(axes, panel.note)
    axes.set_xlabel(panel.x, fontsize=10, color=INK, labelpad=4)
    axes.set_ylabel(shorten(panel.y, 26 if small else 36), fontsize=10, color=INK, labelpad=4)


def frame(axes: Axes, *, labelsize: float = 9) -> None:
    """Give `axes` a white background, lines at the left and the bottom, and tick labels of `labelsize` points."""
    axes.set_facecolor("white")
    axes.tick_params(
        axis="both", which="major", labelsize=labelsize, colors=INK, length=3.5, width=0.8, direction="out"
    )
    axes.tick_params(axis="x", which="both", bottom=True, top=False, labelbottom=True, labeltop=False, pad=4)
    axes.tick_params(axis="y", which="both", left=True, right=False, labelleft=True, labelright=False, pad=4)
    for side, spine in axes.spines.items():
        spine.set(color=FAINT_INK, linewidth=0.8, visible=side in ("left", "bottom"))


def add_note(axes: Axes, note: str) -> None:
    """Write a smaller line between `axes` and its title, which must leave 20 points of space for it."""
    axes.annotate(
        shorten(note, 120), (0, 1), (0, 4), "axes fraction", "offset points", fontsize=9, color=FAINT_INK, va="bottom"
    )


def finish(figure: Figure, *, legend: bool = True) -> Figure:
    """Show all names literally and in one font, and add one legend for all panels below them."""
    from matplotlib.text import Text

    if legend:
        _add_legend(figure)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set(usetex=False, parse_math=False, fontfamily=FONT, fontstyle="normal")
    return figure


def _add_legend(figure: Figure) -> None:
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), line)
    if not entries:
        return
    columns = max(1, min(len(entries), 120 // (max(map(len, entries)) + 8)))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.24 * -(-len(entries) // columns))  # the panels keep their height
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        numpoints=1,
        fontsize=10,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.8,
    )


# -- ticks and texts ---------------------------------------------------------------------------------------------


def linear_ticks(low: float, high: float, *, count: int, integer: bool = False) -> list[float]:
    """Return about `count` round numbers from `low` to `high`, only whole ones if `integer`."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1)
    margin = 1e-9 * (high - low)
    return [float(tick) for tick in locator.tick_values(low, high) if low - margin <= tick <= high + margin]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, both positive: powers of ten, and if they are few, those between."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    apart = max(1, len(exponents) // 8)
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [digit * 10.0**exponent for exponent in exponents[::apart] for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return linear_ticks(low, high, count=5)  # less than a decade


def number_text(value: float, decimals: int | None = None) -> str:
    """Return `value` as the text of a tick: 12,500, −0.25, 1e−7, without floating-point noise."""
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif value == 0.0 or 1e-4 <= abs(value) < 1e9:
        text = f"{value:,.10g}"
    else:
        mantissa, exponent = f"{value:.6g}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.removeprefix("-") if float(value) == 0.0 else text.replace("-", "−")


def number_texts(ticks: Sequence[float]) -> list[str]:
    """Return `ticks` as `number_text` does, all with as many decimals as any of them needs."""
    texts = [number_text(tick) for tick in ticks]
    if any("e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [number_text(tick, decimals) for tick in ticks]


def step_texts(ticks: Sequence[float]) -> list[str]:
    """Return the texts of a step axis's `ticks`: 0, 12,500, 25,000, or on a long axis in millions: 0, 1.5M, 3.0M."""
    if max(ticks, default=0.0) < 1e6:
        return number_texts(ticks)
    return [
        "0" if tick == 0 else f"{text}M"
        for tick, text in zip(ticks, number_texts([t / 1e6 for t in ticks]), strict=True)
    ]


def shorten(text: str, length: int) -> str:
    """Return `text` on one line, with the middle left out if it is longer than `length` characters."""
    text = " ".join(text.split()).lstrip("_") or "?"  # matplotlib omits names with a leading _ from legends
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def _extent(axes: Axes, dimension: int) -> tuple[float, float]:
    """Return the smallest and largest finite value of the lines in `dimension` (0: x, 1: y), or (0, 1) if none."""
    measured = [line for line in axes.lines if line.get_label() != NOT_FINITE or dimension == 0]
    values = np.concatenate([np.asarray(line.get_xydata())[:, dimension] for line in measured] or [np.empty(0)])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _widened(low: float, high: float, *, share: float, least: float) -> tuple[float, float]:
    span = high - low
    margin = share * span if span > 1e-6 * max(abs(low), abs(high)) else least  # a smaller span may be a rounding error
    return low - margin, high + margin
