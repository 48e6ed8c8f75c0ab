"""Pure functions that turn the names in ``Trainer``'s logs into grouped metric names: train/…, eval/…, test/…."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from tracking_callbacks._callbacks.metric_names import grouped_names

__all__ = ["evaluation_prefix", "grouped"]

# The summary at the end of training calls the mean loss over all steps `train_loss`. As `train/loss` it would be a
# wrong extra point on the curve of the loss.
_SUMMARY_NAMES = {"train_loss": "train/mean_loss"}
_SUMMARY_KEY = "total_flos"  # only the summary at the end of training has it
# What the training loop logs at the same step, and an evaluation repeats.
_REPEATED = ("epoch", "num_input_tokens_seen")


def grouped(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of one ``on_log`` or ``on_predict`` under the names that they have in a run.

    ``eval_loss`` becomes ``eval/loss``, ``test_accuracy`` becomes ``test/accuracy``, and the training loop's
    ``loss`` becomes ``train/loss``. Every evaluation has its own prefix (``metric_key_prefix``), and one with
    several evaluation sets has a prefix for each: ``eval_news_loss`` becomes ``eval/news/loss``. Whatever else such a
    log holds belongs to it, too. An evaluation's ``epoch`` and ``num_input_tokens_seen`` are left out, because the
    training loop logs them at the same step.

    Args:
        logs: What ``Trainer`` passed to the callback; not changed. A key that is not a string is converted to one.
    """
    return {name: logs[key] for key, name in _grouped_names(tuple(logs))}


def evaluation_prefix(logs: Mapping[str, Any]) -> str | None:
    """Return the ``metric_key_prefix`` of the evaluation behind `logs`, ``train`` for the summary, or None.

    It is read off ``<prefix>_runtime`` and ``<prefix>_samples_per_second``, which
    ``transformers.trainer_utils.speed_metrics`` adds to evaluations and the summary alike (undocumented, transformers
    5.23.0).
    """
    return _shortest(
        key.removesuffix("_runtime")
        for key in logs
        if key.endswith("_runtime") and key.replace("_runtime", "_samples_per_second") in logs
    )


def _shortest(names: Iterable[str]) -> str | None:
    return min(names, key=len, default=None)


@functools.lru_cache(maxsize=256)  # a training run logs the same few names at every step
def _grouped_names(keys: tuple[Any, ...]) -> tuple[tuple[Any, str], ...]:
    """Return each key to log, with its name in a run."""
    texts = [str(key) for key in keys]
    is_summary = _SUMMARY_KEY in texts
    prefix = None if is_summary else evaluation_prefix(dict.fromkeys(texts))
    names = grouped_names(dict.fromkeys(texts), prefix) | (_SUMMARY_NAMES if is_summary else {})
    return tuple(
        (key, names[text]) for key, text in zip(keys, texts, strict=True) if prefix is None or text not in _REPEATED
    )
