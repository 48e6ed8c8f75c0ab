"""Pure functions from the names in ``Trainer``'s logs to metrics in groups: train/…, eval/…, test/…."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from tracking_callbacks._callbacks.metric_names import TRAIN, grouped_name

__all__ = ["evaluation_prefix", "grouped"]

# The summary at the end of training calls its mean over all steps `train_loss`; as `train/loss` it would be
# one more point on the curve of the last steps' loss, and a wrong one.
_SUMMARY_NAMES = {"train_loss": "train/mean_loss"}


def grouped(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of one ``on_log`` or ``on_predict`` under the names they have in a run.

    ``eval_loss`` becomes ``eval/loss``, ``test_accuracy`` becomes ``test/accuracy``, and the training loop's
    ``loss`` becomes ``train/loss``. Every evaluation brings its own prefix (``metric_key_prefix``), and one
    with several evaluation sets brings one for each: ``eval_news_loss`` becomes ``eval/news/loss``. An
    evaluation's ``epoch`` is left out, for the training loop's own is at the same step.

    Args:
        logs: What ``Trainer`` handed to the callback; not changed. A key that is no text is taken as one.
    """
    return {name: logs[key] for key, name in _grouped_names(tuple(logs))}


def evaluation_prefix(logs: Mapping[str, Any]) -> str | None:
    """Return the ``metric_key_prefix`` of the evaluation behind `logs`, ``train`` for the summary, or None.

    ``transformers.trainer_utils.speed_metrics`` adds ``<prefix>_runtime`` and a throughput to all of them
    (undocumented, transformers 5.23.0).
    """
    return _shortest(
        key.removesuffix("_runtime")
        for key in logs
        if key.endswith("_runtime") and key.replace("_runtime", "_samples_per_second") in logs
    )


def _shortest(names: Iterable[str]) -> str | None:
    return min(names, key=len, default=None)


@functools.lru_cache(maxsize=256)  # a training logs the same few names at every step
def _grouped_names(keys: tuple[Any, ...]) -> tuple[tuple[Any, str], ...]:
    """Return each key that is logged, with its name in a run."""
    texts = [str(key) for key in keys]
    prefix = evaluation_prefix(dict.fromkeys(texts))
    return tuple(
        (key, _SUMMARY_NAMES.get(text) or grouped_name(text, prefix))
        for key, text in zip(keys, texts, strict=True)
        if not (text == "epoch" and prefix not in (None, TRAIN))
    )
