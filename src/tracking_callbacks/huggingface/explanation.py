"""Why a text classifier decides as it does: integrated gradients of its tokens, by captum.

Sundararajan, Taly and Yan: Axiomatic Attribution for Deep Networks, ICML 2017. The baseline is a text of padding.
"""

from __future__ import annotations

import html
import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.huggingface.params import config_of
from tracking_callbacks.huggingface.save_plan import is_module, unwrapped
from tracking_callbacks.huggingface.sharded import is_sharded
from tracking_callbacks.huggingface.trainer_datasets import rows_of

if TYPE_CHECKING:
    import torch

__all__ = ["Explained", "explain", "highlighted", "log_explanation", "words_of"]

logger = logging.getLogger(__name__)

_MOST_ROWS = 64
_MOST_TOKENS = 128
_BATCH = 4
_STEPS = 6  # of the integral, by Gauss-Legendre quadrature; each costs one pass forwards and backwards
_SECONDS = 3.5  # importing captum takes another second
_WORDS_SHOWN = 20
_CONTINUATION = "##"  # WordPiece
_BEGINNINGS = ("Ġ", "▁")  # byte-level BPE and SentencePiece


@dataclass(frozen=True, slots=True)
class Explained:
    """One row of an evaluation.

    Attributes:
        words: Its words, each with how much it spoke for the prediction (of either sign).
        label: The predicted class.
        probability: Of that class.
    """

    words: list[tuple[str, float]]
    label: str
    probability: float


@never_in_the_way
def log_explanation(run: Run, given: Mapping[str, Any], folder: str) -> None:
    """Log which words speak for which class in the rows of an evaluation: table, picture and highlighted sentences.

    It takes about four seconds, and covers as many of 64 rows as it can explain in that time. It is left out with one
    line in the log where it does not apply.

    Args:
        run: The run.
        given: What ``Trainer`` passed to the hook: the classifier, whose mode and gradients stay unchanged, its
            tokenizer, and the dataloader of the last evaluation.
        folder: The evaluation's folder among the artifacts.
    """
    model: Any = unwrapped(given["model"])
    tokenizer, dataloader = given.get("processing_class"), given.get("eval_dataloader")
    if dataloader is None or not is_module(model):
        return
    if is_sharded(model):  # a pass through it in this process alone would wait for the others
        logger.info("the run goes on without importance: the model's weights are spread over processes")
        return
    if find_spec("captum") is None:
        logger.warning("importance: captum is not installed (pip install 'tracking-callbacks[explain]'); left out")
        return
    dataset = rows_of(dataloader)
    if dataset is None or not hasattr(tokenizer, "convert_ids_to_tokens") or not hasattr(model, "get_input_embeddings"):
        logger.info("the run goes on without importance: the evaluation's rows are not texts that can be read again")
        return
    count = min(_MOST_ROWS, len(dataset))
    # In mixed order, so that the rows for which there is time come from everywhere.
    places = [place * len(dataset) // count for place in random.Random(0).sample(range(count), count)]
    rows = [dataset[place] for place in places]
    explained = list(explain(model, tokenizer, rows))
    if not explained:
        return
    table = words_of(explained)
    columns = ("label", "word", "importance", "rows")
    run.log_table([dict(zip(columns, row, strict=True)) for row in table], f"{folder}/words.json")
    run.log_text(highlighted(explained), f"{folder}/explanations.html")
    best = [row for row in table if row[2] > 0][:_WORDS_SHOWN]
    bars = [f'"{_quoted(word)} → {_quoted(label)}",{value:.6g}' for label, word, value, _ in best]
    note = "mean integrated gradient of a word, for the class that was predicted"
    if bars:
        run.draw("importance", folder, "\n".join(["feature,importance", *bars]), note=note)


def explain(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Iterator[Explained]:
    """Yield the rows with their words' attributions, until they or the time have run out.

    Args:
        model: A classifier that returns logits of shape (rows, classes).
        tokenizer: Its tokenizer.
        rows: Each with ``input_ids``, and with what else the model takes.
    """
    import torch
    from captum.attr import LayerIntegratedGradients

    names = getattr(config_of(model), "id2label", None) or {}
    special = set(tokenizer.all_special_ids)
    deadline = time.monotonic() + _SECONDS
    modes = {module: module.training for module in model.modules()}
    gradients = {weight: weight.grad for weight in model.parameters()}
    model.eval()
    try:
        gradient = LayerIntegratedGradients(
            lambda ids, others, *values: model(input_ids=ids, **dict(zip(others, values, strict=True))).logits,
            model.get_input_embeddings(),
        )
        for first in range(0, len(rows), _BATCH):
            if time.monotonic() > deadline:
                logger.info("importance: %d of %d rows in %.0f s", first, len(rows), _SECONDS)
                return
            inputs = _collated(rows[first : first + _BATCH], tokenizer, model)
            ids = inputs.pop("input_ids")
            with torch.no_grad():
                logits = model(input_ids=ids, **inputs).logits
            if logits.ndim != 2 or logits.shape[-1] < 2:
                logger.info("the run goes on without importance: the model does not choose a class for each text")
                return
            likely, classes = logits.softmax(-1).max(-1)
            attributed = gradient.attribute(
                ids,
                baselines=torch.where(_is_one_of(ids, special), ids, tokenizer.pad_token_id or 0),
                target=classes,
                additional_forward_args=(tuple(inputs), *inputs.values()),  # it repeats tensors for each step
                n_steps=_STEPS,
                internal_batch_size=_BATCH * _STEPS,
            )
            results = (values.tolist() for values in (ids, attributed.sum(-1), classes, likely))
            for row, weights, index, probability in zip(*results, strict=True):
                yield Explained(_words(row, weights, tokenizer, special), str(names.get(index, index)), probability)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for weight, before in gradients.items():
            weight.grad = before


def words_of(explained: Sequence[Explained]) -> list[tuple[str, str, float, int]]:
    """Return label, word, mean importance and number of rows, the most telling word first.

    Words that occur in one row only come last: nothing tells whether they mean anything.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in explained:
        totals: dict[str, float] = defaultdict(float)
        for word, weight in row.words:
            totals[word.lower()] += weight
        for word, weight in totals.items():
            found[row.label, word].append(weight)
    table = [(label, word, sum(weights) / len(weights), len(weights)) for (label, word), weights in found.items()]
    return sorted(table, key=lambda row: (row[3] < 2, -row[2], row[:2]))


def highlighted(explained: Sequence[Explained]) -> str:
    """Return a page with the rows, each word on a ground that is green where it speaks for the prediction, else red."""
    most = max((abs(weight) for row in explained for _, weight in row.words), default=0.0) or 1.0
    lines = []
    for row in explained:
        words = []
        for word, weight in row.words:
            hue, strength = (140 if weight > 0 else 5), min(abs(weight) / most, 1.0)
            ground = f"background:hsl({hue} 60% 45% / {strength:.2f})"
            words.append(f'<span title="{weight:+.3f}" style="{ground}">{html.escape(word)}</span>')
        lines.append(
            f"<tr><td><b>{html.escape(row.label)}</b><br>{row.probability:.1%}</td><td>{' '.join(words)}</td></tr>"
        )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Why: words and predictions</title><style>'
        "body{font:15px/1.6 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}"
        "td{padding:.4em .8em;vertical-align:top;border-bottom:1px solid #ddd}"
        "span{padding:.1em .15em;border-radius:3px}"
        "</style></head><body><h1>Which words spoke for the prediction</h1>"
        "<p>Integrated gradients of each word, for the predicted class: green speaks for it, red against it.</p>"
        f"<table>{''.join(lines)}</table></body></html>\n"
    )


def _collated(rows: Sequence[Mapping[str, Any]], tokenizer: Any, model: Any) -> dict[str, torch.Tensor]:
    known = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in rows[0]]
    cut = [{name: _plain(row[name])[:_MOST_TOKENS] for name in known} for row in rows]
    padded = tokenizer.pad(cut, return_tensors="pt")
    return {name: padded[name].to(model.device) for name in padded}


def _plain(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _is_one_of(ids: torch.Tensor, special: set[int]) -> torch.Tensor:
    import torch

    return torch.isin(ids, torch.tensor(sorted(special), device=ids.device))


def _words(ids: Sequence[int], weights: Sequence[float], tokenizer: Any, special: set[int]) -> list[tuple[str, float]]:
    """Return the words of a row with the sum of their tokens' attributions."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    marked = any(token.startswith(_BEGINNINGS) for token in tokens)
    words: list[tuple[str, float]] = []
    begins = True
    for number, token, weight in zip(ids, tokens, weights, strict=True):
        if number in special:
            begins = True
            continue
        continues = token.startswith(_CONTINUATION) or (marked and not token.startswith(_BEGINNINGS))
        text = token.removeprefix(_CONTINUATION).lstrip("".join(_BEGINNINGS))
        if continues and not begins:
            word, before = words.pop()
            words.append((word + text, before + weight))
        else:
            words.append((text, weight))
        begins = False
    return words


def _quoted(text: str) -> str:
    return text.replace('"', '""').replace("\n", " ")
