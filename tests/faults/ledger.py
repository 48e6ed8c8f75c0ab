"""What a trainer was told is accepted, and whether the store holds exactly that.

In the trainer, `keep_ledger` writes one line before each of the run's verbs and one after it has returned, to a file
beside the journal. In the test, `check_exact` compares the store with those lines: everything that was accepted is
there once, with its time and step, and nothing else; only a call that was in flight when the trainer died may have
come through or not.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking_callbacks import Run
from tracking_callbacks.values import param_text, safe_name

MARK = "mark"
SHIFT_MS = 1  # a true repeat within one millisecond is moved into the next one, or MLflow would drop it
OWN_TAGS = {"tracking_callbacks.run_key", "tracking_callbacks.session"}


# -- in the trainer ---------------------------------------------------------------------------------------------------


def keep_ledger(path: Path) -> Callable[[str], None]:
    """Write down what the verbs of all runs accept from now on; return a function that writes a mark between them."""
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    numbers = itertools.count()

    def write(**line: Any) -> None:
        os.write(ledger, (json.dumps(line | {"pid": os.getpid(), "time": time.time_ns() // 1_000_000}) + "\n").encode())

    def recorded(verb: Callable[..., Any]) -> Callable[..., Any]:
        parameters, describe = inspect.signature(verb), _DESCRIPTIONS[verb.__name__]

        @functools.wraps(verb)
        def record(run: Run, *args: Any, **kwargs: Any) -> Any:
            bound = parameters.bind(run, *args, **kwargs)
            bound.apply_defaults()
            content = describe(**{key: value for key, value in bound.arguments.items() if key != "self"})
            number = next(numbers)
            write(call=number, run=run.run_key, verb=verb.__name__, content=content)
            answer = verb(run, *args, **kwargs)
            write(returned=number)
            return answer

        return record

    for name in _DESCRIPTIONS:
        setattr(Run, name, recorded(getattr(Run, name)))
    write(mark="begin")
    return lambda mark: write(mark=mark)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {safe_name(key): param_text(value) for key, value in values.items()}


def _fingerprints(source: Path, place: str) -> dict[str, str]:
    if source.is_dir():
        files = [path for path in source.rglob("*") if path.is_file()]
        return {f"{place}/{path.relative_to(source)}".lstrip("/"): _fingerprint(path.read_bytes()) for path in files}
    return {place: _fingerprint(source.read_bytes())}


def _fingerprint(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _file(path: str | os.PathLike[str], artifact_path: str | None) -> dict[str, str]:
    return _fingerprints(Path(path), f"{artifact_path or ''}/{Path(path).name}".lstrip("/"))


_DESCRIPTIONS: dict[str, Callable[..., Any]] = {
    "log_metrics": lambda metrics, step: [
        [safe_name(key), repr(float(value)), step or 0] for key, value in metrics.items()
    ],
    "log_params": lambda params: _texts(params),
    "set_tags": lambda tags: _texts(tags),
    "log_artifact": _file,
    "log_artifacts": lambda folder, artifact_path: _fingerprints(Path(folder), artifact_path or ""),
    "log_text": lambda text, artifact_file: {artifact_file: _fingerprint(text.encode())},
    "log_dataset": lambda name, context, **_: [name, context],
    "log_model": lambda mlmodel_folder, name, registered_model_name, aliases, **_: {
        "name": name,
        "registered": registered_model_name,
        "aliases": list(aliases),
        "files": _model_files(Path(mlmodel_folder)),
    },
}


def _model_files(folder: Path) -> dict[str, str]:
    # Delivery completes the MLmodel file, and MLflow writes down which version was registered from it.
    changed = ("MLmodel", "registered_model_meta")
    return {place: print_ for place, print_ in _fingerprints(folder, "").items() if place not in changed}


# -- in the test ------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One call of a verb; `returned` is the time (ms) at which it was accepted, None while it was in flight."""

    run_key: str
    verb: str
    content: Any
    began: int
    returned: int | None = None


@dataclass
class Ledger:
    """What one trainer wrote down."""

    marks: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def of_run(self, run_key: str) -> Ledger:
        """Return the part that concerns one run."""
        return Ledger(self.marks, [call for call in self.calls if call.run_key == run_key])

    def contents(self, verb: str, *others: str) -> Iterator[tuple[Any, bool]]:
        """Yield what was logged by some verbs, each with whether it was accepted."""
        for call in self.calls:
            if call.verb in (verb, *others):
                yield call.content, call.returned is not None

    @property
    def run_keys(self) -> set[str]:
        """The runs that accepted something."""
        return {call.run_key for call in self.calls if call.returned is not None}


def read_ledger(*paths: Path) -> Ledger:
    """Read the ledgers of one or several trainers; what forked children of theirs wrote is left out."""
    ledger = Ledger()
    for path in paths:
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        calls: dict[int, Call] = {}
        for line in lines:
            if line["pid"] != lines[0]["pid"]:
                continue
            if MARK in line:
                ledger.marks.append(line[MARK])
            elif "call" in line:
                calls[line["call"]] = Call(line["run"], line["verb"], line["content"], line["time"])
            else:
                calls[line["returned"]].returned = line["time"]
        ledger.calls += calls.values()
    return ledger


def stored_runs(client: Any, experiment: str) -> dict[str, Any]:
    """Return the runs of an experiment by their keys; no two may have one key."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    keyed = {run.data.tags["tracking_callbacks.run_key"]: run for run in runs}
    assert len(keyed) == len(runs), "a run has been made twice"
    return keyed


def check_exact(client: Any, experiment: str, ledger: Ledger, folder: Path) -> list[Any]:
    """Fail unless the store holds what was accepted and nothing else; return the experiment's runs, oldest first.

    Args:
        client: Client of the store.
        experiment: Name of the experiment, which holds nothing but what the ledger tells of.
        ledger: What was accepted.
        folder: An empty or absent folder to download to.
    """
    runs = stored_runs(client, experiment)
    assert ledger.run_keys <= set(runs)
    for key, run in runs.items():
        own = ledger.of_run(key)
        check_points(client, run, own)
        for logged, stored in ((own.contents("log_params"), run.data.params), (own.contents("set_tags"), _tags(run))):
            _check_mapping(logged, stored)
        files = own.contents("log_text", "log_artifact", "log_artifacts")
        _check_mapping(files, _download(client, run.info.run_id, folder / key))
        inputs = [[one.dataset.name, one.tags[0].value if one.tags else None] for one in run.inputs.dataset_inputs]
        _check_list(own.contents("log_dataset"), inputs)
        _check_list(own.contents("log_model"), _models(client, run, folder / f"{key}-models"))
    return sorted(runs.values(), key=lambda run: run.info.start_time)


def check_points(client: Any, run: Any, ledger: Ledger) -> None:
    """Fail unless each accepted point is in the run once, with a time from within the call that logged it."""
    stored = defaultdict(list)
    for key in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, key):
            stored[key, repr(point.value), point.step].append(point.timestamp)
    for call in (call for call in ledger.calls if call.verb == "log_metrics"):
        for key, value, step in call.content:
            times = stored[key, value, step]
            fitting = [time_ for time_ in times if call.began <= time_ <= (call.returned or time_) + SHIFT_MS]
            assert fitting or call.returned is None, f"lost: {key}={value} at step {step}, stored at {times}"
            if fitting:
                times.remove(fitting[0])
    assert not {point: times for point, times in stored.items() if times}, "points that nobody logged, or doubled"


def _tags(run: Any) -> dict[str, str]:
    return {key: text for key, text in run.data.tags.items() if key not in OWN_TAGS and not key.startswith("mlflow.")}


def _check_mapping(logged: Iterator[tuple[dict[str, str], bool]], stored: dict[str, str]) -> None:
    """The last accepted value stands; one in flight may stand in its place."""
    allowed: dict[str, set[str | None]] = {}
    for content, accepted in logged:
        for key, value in content.items():
            allowed[key] = {value} if accepted else allowed.get(key, {None}) | {value}
    wrong = {key: (stored.get(key), allowed.get(key)) for key in stored.keys() | allowed if key not in allowed}
    wrong |= {key: (stored.get(key), values) for key, values in allowed.items() if stored.get(key) not in values}
    assert not wrong, f"stored, allowed: {wrong}"


def _check_list(logged: Iterator[tuple[Any, bool]], stored: list[Any]) -> None:
    accepted, in_flight = [], []
    for content, was_accepted in logged:
        (accepted if was_accepted else in_flight).append(content)
    found, certain, possible = (Counter(json.dumps(one, sort_keys=True) for one in some)
                                for some in (stored, accepted, in_flight))  # fmt: skip
    assert not certain - found, f"lost: {certain - found}"
    assert not found - certain - possible, f"doubled, or logged by nobody: {found - certain - possible}"


def _download(client: Any, run_id: str, folder: Path) -> dict[str, str]:
    if not client.list_artifacts(run_id):
        return {}
    folder.mkdir(parents=True)
    client.download_artifacts(run_id, "", str(folder))
    return _fingerprints(folder, "")


def _models(client: Any, run: Any, folder: Path) -> list[Any]:
    found = client.search_logged_models([run.info.experiment_id])
    models = {model.model_id: model for model in found if model.source_run_id == run.info.run_id}
    assert {output.model_id for output in run.outputs.model_outputs} == set(models)
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    described = []
    for model in models.values():
        own = [
            version for version in versions if version.source in (f"models:/{model.model_id}", model.artifact_location)
        ]
        assert len(own) <= 1, "a version has been made twice"
        registered = own[0].name if own else None
        aliases = client.get_registered_model(registered).aliases if registered else {}
        assert str(model.status) in ("READY", "LoggedModelStatus.READY")
        target = folder / model.model_id
        target.mkdir(parents=True)
        import mlflow

        mlflow.set_tracking_uri(client.tracking_uri)
        try:
            mlflow.artifacts.download_artifacts(f"models:/{model.model_id}", dst_path=str(target))
        finally:
            mlflow.set_tracking_uri(None)
        described.append(
            {
                "name": model.name,
                "registered": registered,
                "aliases": [alias for alias, version in aliases.items() if str(own[0].version) == str(version)],
                "files": _model_files(target),
            }
        )
    return described
