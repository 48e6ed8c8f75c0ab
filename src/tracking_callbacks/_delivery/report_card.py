"""Pure: the descriptions of a run and of a registered version, in Markdown, from what the store has of them.

A text of ours ends in a comment with its own digest. A text without that, or with another digest, is a user's and is
never replaced.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tracking_callbacks._delivery.batches import Point
from tracking_callbacks._delivery.stores.store import StoredRun
from tracking_callbacks._journal.records import ERROR_TAG, TRIALS_TAG, Status

__all__ = [
    "NOTE_TAG",
    "CardModel",
    "Column",
    "column",
    "is_ours",
    "loading_call",
    "run_card",
    "signed",
    "version_card",
]

NOTE_TAG = "mlflow.note.content"  # what the UI shows as the description
_MARK = re.compile(r"\n\n<!-- tracking_callbacks ([0-9a-f]{16}) -->\n?\Z")
_MOST_CHARACTERS = 4_500  # some stores cut tags at 5 000
_MOST_METRICS = 8
# What people look at first; the rest follows in the order of its names.
_TELLING = (
    *("f1", "accuracy", "loss", "sharpe_ratio", "total_return", "cagr", "max_drawdown", "mean_reward"),
    *("precision", "recall", "reward", "length"),
)
_GROUPS = ("eval/", "test/")
_USES = {"on": ("training", "train", ""), "evaluated on": ("evaluation", "eval", "validation"), "tested on": ("test",)}
_TROUBLE = {
    "tracking_callbacks.stopped_early": "Training stopped before its planned end",
    "tracking_callbacks.model_error": "The model could not be saved in a flavor",
    "tracking_callbacks.rejected": "Entries that the store refused (see tracking_callbacks/rejected.jsonl)",
    "tracking_callbacks.dropped_checkpoints": "Checkpoints that were dropped to make room",
    "tracking_callbacks.dropped_in_forks": "Entries that forked processes could not log",
    "sharpe.skipped": "No Sharpe ratio",
}


class CardModel(NamedTuple):
    """A logged model.

    Attributes:
        load: The call that loads it, with ``{uri}`` for the model's URI.
        registered: Name and version in the registry; None if it is not registered.
        outcome: What came of the comparison with the holder of an alias; empty without one.
        deflated: Its deflated Sharpe ratio over the registered versions; empty without one.
    """

    load: str
    registered: tuple[str, str] | None = None
    outcome: str = ""
    deflated: str = ""

    @property
    def judgement(self) -> str:
        """What the card says of it, as a list."""
        deflated = f"deflated Sharpe ratio {self.deflated}" if self.deflated else ""
        return "\n".join(f"- {line}" for line in (self.outcome, deflated) if line)


class Column(NamedTuple):
    """A column of figures: its heading, and the texts by metric."""

    heading: str
    cells: dict[str, str]


def column(heading: str, last: Iterable[Point], own: Iterable[Point] = ()) -> Column:
    """Return the figures of a run: those of its registered model, if training has gone on since, else its last ones.

    The heading names the model's step then, and a figure of another step says so.

    Args:
        heading: What the figures are.
        last: The run's last points.
        own: The points that belong to its registered model.
    """
    points = {point.key: point for point in last}
    of_model = {point.key: point for point in own if point.key.startswith(_GROUPS)}
    if all(key in points and points[key].step == point.step for key, point in of_model.items()):
        return Column(heading, {key: _number(point.value) for key, point in points.items()})
    step = max(point.step for point in of_model.values())
    cells = {
        key: _number(point.value) + ("" if point.step == step else f" (step {point.step})")
        for key, point in (points | of_model).items()
    }
    return Column(f"{heading} at step {step}", cells)


def run_card(
    run: StoredRun,
    status: Status | None,
    models: Sequence[CardModel],
    pictures: Iterable[str],
    figures: Column | None = None,
    reference: Column | None = None,
) -> str:
    """Return the description of a run; empty if there is nothing to say.

    Args:
        run: The run as the store has it.
        status: How it ended; None while it goes on.
        models: Its models.
        pictures: Paths of its pictures among its artifacts.
        figures: Its figures; None means its last ones.
        reference: What they are shown next to.
    """
    parts = [
        _headline(run, status),
        _trouble(run.tags),
        "\n".join(model.judgement for model in models if model.judgement),
        _table(figures or column("value", run.metrics), reference),
        _pictures(run, pictures),
        _loading(models),
    ]
    if not any(parts[1:]) and "framework" not in run.tags:
        return ""
    return _joined(parts)


def version_card(run: StoredRun, model: CardModel, points: Iterable[Point]) -> str:
    """Return the description of a registered version.

    Args:
        run: The run that made it.
        model: The version.
        points: Its figures: those that its logged model is linked to.
    """
    name = run.tags.get("mlflow.runName", run.run_id)
    link = f"From the run [{_inline(name)}](#/experiments/{run.experiment_id}/runs/{run.run_id})."
    parts = [
        _headline(run, None, running=False),
        model.judgement,
        _table(column("value", points)),
        link,
        _loading([model]),
    ]
    return _joined(parts)


def signed(text: str) -> str:
    """Return `text` with the mark that makes it ours."""
    return f"{text}\n\n<!-- tracking_callbacks {_digest(text)} -->"


def is_ours(text: str) -> bool:
    """Return whether `text` may be replaced: it is empty, or `signed` and unchanged since."""
    if not text.strip():
        return True
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _digest(text[: mark.start()])


def loading_call(flavors: Iterable[str]) -> str:
    """Return the call that loads a model with these flavors, with ``{uri}`` for its URI."""
    names = set(flavors)
    if "stable_baselines3" in names:
        return 'tracking_callbacks.flavors.sb3.load_model("{uri}")'
    if "transformers" in names:
        components = "" if "python_function" in names else ', return_type="components"'
        return f'mlflow.transformers.load_model("{{uri}}"{components})'
    if "sentence_transformers" in names:
        return 'mlflow.sentence_transformers.load_model("{uri}")'
    if "pytorch" in names:
        return 'mlflow.pytorch.load_model("{uri}", weights_only=False)'
    return 'mlflow.pyfunc.load_model("{uri}")'


def _headline(run: StoredRun, status: Status | None, *, running: bool = True) -> str:
    tags, params = run.tags, run.params
    framework = tags.get("framework")
    using = f" with {framework} {tags.get('framework_version', '')}".rstrip() if framework else ""
    if trials := tags.get(TRIALS_TAG):
        best = f", the best is trial {tags['best_trial']}" if "best_trial" in tags else ""
        return f"**{trials} trials**{using}{best}. {status or 'Under way'}."
    what = tags.get("model_type") or framework or "A run"
    base = params.get("base_model") or params.get("model.name_or_path")
    made = f"**{what}**" + (f" from {_origin(base)}" if base else "")
    adapter = next((name for name in params if name.startswith("lora.") and name.endswith(".r")), None)
    if adapter is not None:
        made += f", LoRA of rank {params[adapter]}"
    if using:
        made += f", trained{using}"
    for said, contexts in _USES.items():
        used = {f"{one.name} ({one.digest})": None for one in run.datasets if one.context in contexts}
        made += f", {said} {' and '.join(used)}" if used else ""
    if not running:
        return f"{made}."
    return f"{made}. {status or 'Under way'}."


def _origin(base: str) -> str:
    """Return the name of a base model; of a path on one machine its last two parts."""
    parts = [part for part in re.split(r"[\\/]", base) if part]
    return "/".join(parts[-2:]) if base.startswith(("/", "\\")) or base[1:2] == ":" else base


def _trouble(tags: Mapping[str, str]) -> str:
    found = [f"{said}: {_inline(tags[name])}" for name, said in _TROUBLE.items() if tags.get(name)]
    if error := tags.get(ERROR_TAG):
        actor = "Training" if "framework" in tags else "The run"
        stopped = error.partition(":")[0] == "KeyboardInterrupt"
        found.insert(0, f"{actor} was stopped by Ctrl-C" if stopped else f"{actor} failed: {_inline(error)}")
    return "\n".join(f"- ⚠ {line}" for line in found)


def _table(figures: Column, reference: Column | None = None) -> str:
    shown = (name for name in figures.cells if name.startswith(_GROUPS) and "/class/" not in name)
    names = sorted(shown, key=_rank)[:_MOST_METRICS]
    if not names:
        return ""
    columns = [figures]
    if reference is not None and any(name in reference.cells for name in names):
        columns.append(reference)
    rows = [["metric", *(one.heading for one in columns)], ["---"] * (len(columns) + 1)]
    rows += [[_inline(name), *(one.cells.get(name, "–") for one in columns)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rank(name: str) -> tuple[int, int, str]:
    last = name.rpartition("/")[2]
    return (_TELLING.index(last) if last in _TELLING else len(_TELLING), name.count("/"), name)


def _pictures(run: StoredRun, pictures: Iterable[str]) -> str:
    root = f"#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts"
    links = [f"[{_title(path)}]({root}/{path.replace(' ', '%20')})" for path in pictures]
    return f"Pictures: {', '.join(links)}" if links else ""


def _title(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("_", " ")


def _loading(models: Sequence[CardModel]) -> str:
    calls = [
        model.load.format(uri=f"models:/{model.registered[0]}/{model.registered[1]}")
        for model in models
        if model.registered is not None
    ]
    return "```python\n" + "\n".join(dict.fromkeys(calls)) + "\n```" if calls else ""


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _inline(text: str) -> str:
    """Return `text` on one line, which Markdown shows literally."""
    line = " ".join(text.split())
    line = line if len(line) <= 300 else f"{line[:299]}…"
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def _joined(parts: Iterable[str]) -> str:
    """Return the parts, one below the other, without those at the end for which there is no room."""
    text = ""
    for part in filter(None, parts):
        if len(text) + len(part) > _MOST_CHARACTERS:
            break
        text += f"\n\n{part}" if text else part
    return text


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
