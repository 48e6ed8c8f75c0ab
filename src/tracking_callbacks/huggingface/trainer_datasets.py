"""Records the datasets of a ``Trainer`` as inputs of the run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.dataset_inputs import log_input
from tracking_callbacks._runs.run import Run
from tracking_callbacks.huggingface.params import config_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["log_dataset_of"]

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
    dataset: Any = getattr(dataloader, "dataset", None)
    # Undocumented (transformers 5.23.0, accelerate 1.15.0): both wrap the user's dataset in a class of this name.
    if type(dataset).__name__ == "IterableDatasetShard":
        dataset = dataset.dataset
    if dataset is not None:
        labels = getattr(config_of(model), "id2label", None) or {}
        log_input(
            run,
            dataset,
            role,
            context=context,
            readable=not getattr(dataloader, "num_workers", 0),
            decorate=functools.partial(_readable, tokenizer=tokenizer, labels=labels),
        )


def _readable(row: Mapping[str, Any], *, tokenizer: Any, labels: Mapping[int, str]) -> dict[str, Any]:
    """Return `row` with the decoded text of its token ids and the name of its label added."""
    added = {}
    if "input_ids" in row and "text" not in row and hasattr(tokenizer, "decode"):
        added["text"] = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    for column in _LABEL_COLUMNS:
        label: Any = row.get(column)
        label = label.item() if getattr(label, "shape", None) == () else label
        if isinstance(label, int) and label in labels:
            added["label name"] = labels[label]
    return added | dict(row)
