"""Pure: the names of metrics in groups, ``train/…``, ``eval/…``, ``test/…``, from names like ``eval_loss``."""

from __future__ import annotations

__all__ = ["TRAIN", "grouped_name"]

TRAIN = "train"
_EVALUATIONS = ("eval", "test")


def grouped_name(key: str, prefix: str | None = None) -> str:
    """Return the name that the value `key` of a framework's log has in a run.

    ``eval_loss`` becomes ``eval/loss``, ``test_accuracy`` becomes ``test/accuracy``, and ``loss`` becomes
    ``train/loss``.

    Args:
        key: The framework's own name.
        prefix: What the names of the evaluation behind the value begin with, where that is known: with ``eval_news``,
            ``eval_news_loss`` becomes ``eval/news/loss``.
    """
    if prefix is not None and key.startswith(f"{prefix}_"):
        return f"{_group_of(prefix)}/{key.removeprefix(f'{prefix}_')}"
    for group in (*_EVALUATIONS, TRAIN):
        if key.startswith(f"{group}_"):
            return f"{group}/{key.removeprefix(f'{group}_')}"
    return f"{TRAIN}/{key}"


def _group_of(prefix: str) -> str:
    for group in _EVALUATIONS:
        if prefix.startswith(f"{group}_"):
            return f"{group}/{prefix.removeprefix(f'{group}_')}"
    return prefix
