"""Records the datasets of a ``Trainer`` as inputs of the run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.dataset_inputs import log_input
from tracking_callbacks._runs.run import Run
from tracking_callbacks.huggingface.params import config_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["example_text", "label_of", "log_dataset_of", "readable_row", "row_order", "rows_of"]

_LABEL_COLUMNS = ("labels", "label", "label_ids")


def log_dataset_of(
    run: Run, dataloader: Any, role: str, *, context: str, tokenizer: Any = None, model: nn.Module | None = None
) -> None:
    """Record the dataset behind a dataloader.

    Args:
        run: The run.
        dataloader: The one that ``Trainer`` passes to its callbacks, which has already dropped unused columns. None is
            ignored.
        role: What the training calls the dataset.
        context: MLflow's name for what the run uses the dataset for.
        tokenizer: Decodes token ids for the sample of rows.
        model: Its configuration has the names of the labels for the sample of rows.
    """
    dataset = _dataset_of(dataloader)
    if dataset is not None:
        labels = getattr(config_of(model), "id2label", None) or {}
        log_input(
            run,
            dataset,
            role,
            context=context,
            readable=not getattr(dataloader, "num_workers", 0),
            decorate=functools.partial(readable_row, tokenizer=tokenizer, labels=labels),
        )


def rows_of(dataloader: Any) -> Any:
    """Return the dataset behind a dataloader if its rows can be read by their places in this process, else None."""
    dataset = _dataset_of(dataloader)
    if getattr(dataloader, "num_workers", 0) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        return None
    return dataset


def example_text(dataloader: Any, tokenizer: Any) -> str | None:
    """Return the text of the first row of an evaluation; None if it has no text, or cannot be read in this process."""
    dataset = rows_of(dataloader)
    if dataset is None or not len(dataset) or not isinstance(row := dataset[0], Mapping):
        return None
    text = readable_row(row, tokenizer=tokenizer, labels={}).get("text")
    return text if isinstance(text, str) and text.strip() else None


def row_order(dataloader: Any) -> list[int]:
    """Return the places of an evaluation's rows in the order in which it read them.

    With ``train_sampling_strategy="group_by_length"`` an evaluation is sorted by length, in an order that depends on
    the seed of its sampler's generator.
    """
    sampler: Any = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
    generator = getattr(sampler, "generator", None)
    if generator is None:
        return list(range(len(rows_of(dataloader))))
    again: Any = copy.copy(sampler)
    again.generator = type(generator)().manual_seed(generator.initial_seed())
    return list(again)


def label_of(row: Any) -> int | None:
    """Return the class id in a row of a dataset, None if it has none."""
    for column in _LABEL_COLUMNS if isinstance(row, Mapping) else ():
        label: Any = row.get(column)
        label = label.item() if getattr(label, "shape", None) == () else label
        if isinstance(label, int):
            return label
    return None


def _dataset_of(dataloader: Any) -> Any:
    dataset: Any = getattr(dataloader, "dataset", None)
    # Undocumented (transformers 5.23.0, accelerate 1.15.0): both wrap the user's dataset in a class of this name.
    return dataset.dataset if type(dataset).__name__ == "IterableDatasetShard" else dataset


def readable_row(row: Mapping[str, Any], *, tokenizer: Any, labels: Mapping[int, str]) -> dict[str, Any]:
    """Return `row` with the decoded text of its token ids and the name of its label added."""
    added = {}
    if "input_ids" in row and "text" not in row and hasattr(tokenizer, "decode"):
        added["text"] = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    if (label := label_of(row)) is not None and label in labels:
        added["label name"] = labels[label]
    return added | dict(row)
