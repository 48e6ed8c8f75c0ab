"""Pure: the names of metrics in groups, ``train/…``, ``eval/…``, ``test/…``, from names like ``eval_loss``."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["TRAIN", "grouped_name", "grouped_names"]

TRAIN = "train"
_EVALUATIONS = ("eval", "test")
_GROUPS = (*_EVALUATIONS, TRAIN)


def grouped_name(key: str, prefix: str | None = None) -> str:
    """Return the name that the value `key` of a framework's log has in a run.

    ``eval_loss`` becomes ``eval/loss``, ``test_accuracy`` becomes ``test/accuracy``, and ``loss`` becomes
    ``train/loss``. A name that begins with one of these groups already, such as ``eval/loss``, stays as it is.

    Args:
        key: The framework's own name.
        prefix: What the names of the evaluation behind the log begin with; None for a log of training. With
            ``eval_news``, ``eval_news_loss``, ``eval_loss`` and ``loss`` all become ``eval/news/loss``: the log's own
            prefix says whose values they are.
    """
    if key.startswith(tuple(f"{group}/" for group in _GROUPS)):
        return key
    group = TRAIN if prefix is None else _group_of(prefix)
    own = () if prefix is None else (prefix, prefix.partition("_")[0])
    for beginning in own:
        if key.startswith(f"{beginning}_"):
            return f"{group}/{key.removeprefix(f'{beginning}_')}"
    for other in _GROUPS:
        if key.startswith(f"{other}_"):
            return f"{other}/{key.removeprefix(f'{other}_')}"
    return f"{group}/{key}"


def grouped_names(keys: Iterable[str], prefix: str | None = None) -> dict[str, str]:
    """Return the names of all values of one log; no two of them are the same.

    If several keys would have one name, the key that says most has it, and the others keep their own behind the group:
    of ``eval_news_loss`` and ``eval_loss`` in the log of ``eval_news``, the second becomes ``eval/news/eval_loss``.

    Args:
        keys: The framework's own names, each once.
        prefix: As in `grouped_name`.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    ordered = list(keys)
    for key in sorted(ordered, key=lambda one: ("/" not in one, not one.startswith(f"{prefix}_"), -len(one))):
        name = grouped_name(key, prefix)
        if name in taken:
            name = f"{TRAIN if prefix is None else _group_of(prefix)}/{key}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[key] = name
    return {key: names[key] for key in ordered}


def _group_of(prefix: str) -> str:
    if prefix == TRAIN:  # an evaluation of the training data, which is no part of the training loop's log
        return f"eval/{TRAIN}"
    for group in _EVALUATIONS:
        if prefix.startswith(f"{group}_"):
            return f"{group}/{prefix.removeprefix(f'{group}_')}"
    return prefix
