"""What callbacks record of a dataset: an input of the run, and on request some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tracking_callbacks._contents.datasets import Row, summarize
from tracking_callbacks._runs.run import Run
from tracking_callbacks._values.conversion import cut_text
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["log_input", "shortened"]

_SAMPLE_ROWS = 20
_LONG_TEXT = 2_000
_LONG_LIST = 64


@never_in_the_way
def log_input(
    run: Run,
    dataset: object,
    role: str,
    *,
    context: str,
    name: str | None = None,
    readable: bool = True,
    decorate: Callable[[Row], Row] = dict,
) -> None:
    """Record `dataset` as an input of the run, and some of its rows if the tracker asks for them.

    Args:
        run: The run.
        dataset: What training or evaluation reads, see `summarize`.
        role: What the framework calls it: ``train``, ``eval``, …; its name where the dataset has none.
        context: MLflow's word for what the run uses it for.
        name: Name of the dataset.
        readable: Whether rows may be read in this process.
        decorate: Makes a row readable before it is logged.
    """

    def write() -> None:
        summary = summarize(dataset, readable=readable)
        known = name or summary.name or role
        digest = run.log_dataset(known, dataset=summary, context=context)
        run.evaluated_on(role, digest, known)
        run.record("sample_rows", lambda: write_sample(summary.sample(_SAMPLE_ROWS)))

    def write_sample(rows: Sequence[Row]) -> None:
        if rows:
            shown = [{str(key): shortened(value) for key, value in decorate(row).items()} for row in rows]
            run.log_table(shown, f"data/sample_{role}.json")

    run.record("datasets", write)


def shortened(value: Any) -> Any:
    """Return `value` so that it fits a cell of a table."""
    if isinstance(value, str):
        return cut_text(value, _LONG_TEXT)
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape = tuple(value.shape)
        few = len(shape) == 0 or (len(shape) == 1 and shape[0] <= _LONG_LIST)
        return value.tolist() if few else f"<{value.dtype} of shape {shape}>"
    if isinstance(value, Mapping):
        return {str(key): shortened(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        cut = [shortened(inner) for inner in value[:_LONG_LIST]]
        return cut if len(value) <= _LONG_LIST else [*cut, f"… {len(value)} in all"]
    return value
