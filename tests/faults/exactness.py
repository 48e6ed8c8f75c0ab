"""Checks that a store holds exactly what a ledger says: everything that was accepted, once, and nothing else.

Points must have the times that the journal gave them, files and models the same bytes, and the run its true start, end
and status. Only a call that was in flight when the trainer died may be stored or missing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faults.ledger import Ledger, fingerprints, model_files
from tracking_callbacks._contents import AUTOMATIC_ARTIFACTS, AUTOMATIC_TAGS
from tracking_callbacks._journal.records import Metrics, Model, RunEnded, SessionOpened
from tracking_callbacks._values.names import MAX_KEY_LENGTH

__all__ = ["check_exact", "check_nothing_waited", "journaled_points", "stored_points", "stored_runs"]

STAMP_MS = 1  # a true repeat within one millisecond moves to the next one because MLflow would drop it
AUTOMATIC_TAG_PREFIXES = ("tracking_callbacks.run_key", "tracking_callbacks.session", *AUTOMATIC_TAGS)
# what delivery reports about the run, and the run's automatic contents
AUTOMATIC_FILES = ("tracking_callbacks/", *AUTOMATIC_ARTIFACTS)
RECORD_TAG = "tracking_callbacks.record"
SAVING = {"on_train_end", "_on_training_end", "log_model"}  # they write the model's files

Logged = Iterable[tuple[Any, bool]]
Points = Counter[tuple[tuple[str, str, int], int]]


def stored_runs(client: Any, experiment: str) -> dict[str, Any]:
    """Return the runs of an experiment by key; the experiment may not exist yet, and no two runs share a key."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    keyed = {run.data.tags["tracking_callbacks.run_key"]: run for run in runs}
    assert len(keyed) == len(runs), "a run was created twice"
    return keyed


def check_nothing_waited(ledger: Ledger) -> None:
    """Fail if a hook or a verb waited for tracking; allow for a busy machine but not for a request's time-out."""
    costs = defaultdict(list)
    for name, seconds in ledger.seconds:
        costs["saving" if name in SAVING else "hook" if "on_" in name else "verb"].append(seconds)

    assert costs["verb"], "nothing was logged"
    assert max(costs.pop("saving")) < 10
    for kind, those in costs.items():
        assert statistics.median(those) < 0.02, kind
        assert max(those) < 1.5, kind


def check_exact(client: Any, experiment: str, ledger: Ledger, folder: Path) -> list[Any]:
    """Fail unless the store holds what was accepted and nothing else; return the experiment's runs, oldest first.

    Args:
        client: Client of the store.
        experiment: Name of the experiment, which holds nothing but what is in the ledger.
        ledger: What was accepted.
        folder: An empty or absent folder to download to.
    """
    runs = stored_runs(client, experiment)
    assert ledger.run_keys <= set(runs)
    for key, run in runs.items():
        own = ledger.of_run(key)
        if not own.taken(SessionOpened):  # killed between the journal's first record and our line about it
            assert not own.calls
            continue
        check_times(run, own)
        check_points(client, run, own)
        params, drift = first_values(own.contents("log_params"))
        check_mapping(params, run.data.params)
        logged = [*opening_tags(own), *own.contents("set_tags"), (drift, True)]
        check_mapping([(asked(tags), accepted) for tags, accepted in logged], asked(run.data.tags))
        files = own.contents("log_text", "log_artifact", "log_artifacts")
        check_mapping(files, stored_files(client, run, folder / key))
        check_list(own.contents("log_dataset"), stored_datasets(run))
        check_list(own.contents("log_model"), stored_models(client, run, own, folder / f"{key}-models"))
    return sorted(runs.values(), key=lambda run: run.info.start_time)


def check_times(run: Any, ledger: Ledger) -> None:
    """Check that the run has the start of its first session, and the end and status from its last one, if any."""
    sessions = [session for session in ledger.taken(SessionOpened) if session.intent == "own"]
    ends = [end for end in ledger.taken(RunEnded) if end.status]
    if not sessions[0].resumed:
        assert run.info.start_time == sessions[0].timestamp
    if ends and ends[-1].timestamp >= sessions[-1].timestamp:
        assert (run.info.status, run.info.end_time) == (ends[-1].status, ends[-1].timestamp)


def check_points(client: Any, run: Any, ledger: Ledger) -> None:
    """Check that each point has the time of its record, and that this time is within the call that logged it."""
    stored, journaled = stored_points(client, run), journaled_points(ledger)
    assert not journaled - stored, f"lost, or stored with another time: {journaled - stored}"
    times = defaultdict(list)
    for point, timestamp in sorted(stored.elements()):
        times[point].append(timestamp)
    for call in (call for call in ledger.calls if call.verb == "log_metrics"):
        for key, value, step in call.content:
            at = times[key, repr(as_stored(float(value))), step]
            fitting = [time for time in at if call.began <= time <= (call.returned or time) + STAMP_MS]
            assert fitting or call.returned is None, f"lost: {key}={value} at step {step}, stored at {at}"
            if fitting:
                at.remove(fitting[0])
    left = {point: at for point, at in times.items() if at}
    assert not left, f"points that were never logged, or duplicated: {left}"


def stored_points(client: Any, run: Any) -> Points:
    """Return the points of a run: key, value and step, and the time."""
    return Counter(
        ((key, repr(point.value), point.step), point.timestamp)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def journaled_points(ledger: Ledger) -> Points:
    """Return the points in the journals as a store keeps them."""
    return Counter(
        ((key, repr(as_stored(value)), record.step), record.timestamp)
        for record in ledger.taken(Metrics)
        for key, value in record.metrics.items()
    )


def as_stored(value: float) -> float:
    """Return a metric's value as MLflow's SQL stores keep it: they cannot hold infinities."""
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value


def opening_tags(ledger: Ledger) -> Logged:
    """Return the tags that a run was started with."""
    return [(session.tags, True) for session in ledger.taken(SessionOpened)]


def asked(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that the package does not set automatically."""
    return {name: text for name, text in tags.items() if not name.startswith(AUTOMATIC_TAG_PREFIXES)}


def first_values(logged: Logged) -> tuple[Logged, dict[str, str]]:
    """Return the first value of each param of a run, and the tags that report later values."""
    kept: list[tuple[dict[str, str], bool]] = []
    certain: dict[str, str] = {}
    drift: dict[str, str] = {}
    for texts, accepted in logged:
        conflicts = {name: text for name, text in texts.items() if certain.get(name, text) != text}
        drift |= {f"param_drift.{name}"[:MAX_KEY_LENGTH]: text for name, text in conflicts.items()}
        kept.append(({name: text for name, text in texts.items() if name not in conflicts}, accepted))
        certain |= kept[-1][0] if accepted else {}
    return kept, drift


def check_mapping(logged: Logged, stored: dict[str, str]) -> None:
    """Check that the store has the last accepted value, or one that was in flight."""
    allowed: dict[str, set[str | None]] = {}
    for content, accepted in logged:
        for key, value in content.items():
            allowed[key] = {value} if accepted else allowed.get(key, {None}) | {value}
    wrong = {key: (stored.get(key), allowed.get(key)) for key in stored.keys() | allowed if key not in allowed}
    wrong |= {key: (stored.get(key), values) for key, values in allowed.items() if stored.get(key) not in values}
    assert not wrong, f"stored, allowed: {wrong}"


def check_list(logged: Logged, stored: list[Any]) -> None:
    """Check that the store has what was accepted as often as it was logged; what was in flight may be there too."""
    accepted, in_flight = [], []
    for content, was_accepted in logged:
        (accepted if was_accepted else in_flight).append(content)
    found, certain, possible = (Counter(json.dumps(one, sort_keys=True) for one in some)
                                for some in (stored, accepted, in_flight))  # fmt: skip
    surplus = list(found - certain - possible)
    assert not certain - found, f"lost: {list(certain - found)}, and in its place: {surplus}"
    assert not found - certain - possible, f"duplicated, or never logged: {found - certain - possible}"


def stored_files(client: Any, run: Any, folder: Path) -> dict[str, str]:
    """Return digests of the run's artifacts by their paths."""
    if not client.list_artifacts(run.info.run_id):
        return {}
    folder.mkdir(parents=True)
    client.download_artifacts(run.info.run_id, "", str(folder))
    return {path: print_ for path, print_ in fingerprints(folder, "").items() if not path.startswith(AUTOMATIC_FILES)}


def stored_datasets(run: Any) -> list[list[str | None]]:
    """Return name, digest and context of the run's inputs."""
    inputs = [(one.dataset, {tag.key: tag.value for tag in one.tags}) for one in run.inputs.dataset_inputs]
    return [[dataset.name, dataset.digest, tags.get("mlflow.data.context")] for dataset, tags in inputs]


def stored_models(client: Any, run: Any, ledger: Ledger, folder: Path) -> list[Any]:
    """Return the run's models as the ledger describes them: created once, linked, ready, registered once, loadable."""
    found = client.search_logged_models([run.info.experiment_id])
    models = {model.model_id: model for model in found if model.source_run_id == run.info.run_id}
    made = [model.tags[RECORD_TAG] for model in models.values()]
    assert {record.record_key for record in ledger.taken(Model)} <= set(made)
    assert len(set(made)) == len(made), "a model was created twice"
    assert {output.model_id for output in run.outputs.model_outputs} == set(models)
    versions = defaultdict(list)
    for version in client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        versions[version.source].append(version)
    described = []
    for model in models.values():
        own = versions.pop(f"models:/{model.model_id}", []) + versions.pop(model.artifact_location, [])
        assert len(own) <= 1, "a version was created twice"
        assert str(model.status) in ("READY", "LoggedModelStatus.READY")
        registered = own[0].name if own else None
        aliases = client.get_registered_model(registered).aliases if registered else {}
        held = sorted(alias for alias, version in aliases.items() if str(own[0].version) == str(version))
        name = f"{registered}@{held[0]}" if held else f"{registered}/{own[0].version}" if own else model.model_id
        files = loaded_files(client, name, model.model_id, folder / model.model_id)
        described.append({"name": model.name, "registered": registered, "aliases": held, "files": files})
    assert not versions, "versions of models that do not exist"
    return described


def loaded_files(client: Any, name: str, model_id: str, folder: Path) -> dict[str, str]:
    """Return digests of the files of the model called ``models:/<name>``, which must load."""
    import mlflow

    folder.mkdir(parents=True)
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        mlflow.artifacts.download_artifacts(f"models:/{name}", dst_path=str(folder))
        files = model_files(folder)  # before loading, which compiles the model's code next to it
        assert mlflow.pyfunc.load_model(str(folder)).metadata.model_id == model_id
    finally:
        mlflow.set_tracking_uri(None)
    return files
