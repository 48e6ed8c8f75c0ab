"""Writes the figures that users make, without importing the libraries that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracking_callbacks.errors import InputError

__all__ = ["figure_writer"]


def figure_writer(fig: Any, place: str) -> Callable[[Path], object]:
    """Return what writes `fig` to a path whose ending is that of `place`.

    Raises:
        InputError: `fig` is not a figure of matplotlib, seaborn or plotly, or its library does not write that ending.
    """
    ending = Path(str(place)).suffix.lower().removeprefix(".")
    if isinstance(fig, type):
        pass
    elif callable(getattr(fig, "write_html", None)):
        if ending not in ("html", "htm"):
            raise InputError(f"log_figure: expected a place that ends in .html for a plotly figure, got {place!r}")
        # The script alone is 4.5 MB. `mlflow.log_figure` leaves it out too.
        return lambda target: fig.write_html(target, include_plotlyjs="cdn", auto_open=False)
    elif callable(getattr(fig, "savefig", None)):
        figure = fig if hasattr(fig, "canvas") else getattr(fig, "figure", None)  # a grid of seaborn has one
        canvas = getattr(figure, "canvas", None)
        if canvas is not None:
            if ending not in (endings := canvas.get_supported_filetypes()):
                known = ", ".join(f".{one}" for one in sorted(endings))
                raise InputError(
                    f"log_figure: expected a place that ends in one of {known} for a matplotlib figure, got {place!r}"
                )
            return lambda target: fig.savefig(target, dpi=200, bbox_inches="tight")
    raise InputError(f"log_figure: expected a figure of matplotlib or plotly, got {fig!r} ({type(fig).__name__})")
