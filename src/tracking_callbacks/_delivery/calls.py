"""Carries out the calls of MLflow's that a program has made through the plugin, in steps harmless when repeated."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tracking_callbacks._delivery.batches import MAX_METRICS, Point
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.models import VERSIONS_TAG, complete_mlmodel, make_model
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.run_resolver import known_id, provisional_experiment
from tracking_callbacks._delivery.stores.store import RECORD_TAG, Store, StoredVersion, model_id_in
from tracking_callbacks._journal import calls
from tracking_callbacks._journal.confined import is_key
from tracking_callbacks._journal.layout import JournalRoot, RunState
from tracking_callbacks._journal.provisional import PENDING_VERSION
from tracking_callbacks._values.names import artifact_place
from tracking_callbacks.errors import InputError

__all__ = ["CallDelivery"]

_VERSION_URI = re.compile(r"models:/+([^/]+)/(\d+)")


class CallDelivery:
    """The calls of one run's folder, or of one that belongs to no run.

    Args:
        store: The store.
        once: Prevents a model or version from being created twice.
        root: The journal root, which has the map of provisional ids.
        state: Receives the server's ids by the provisional ones.
        run_id: The run; empty if the folder belongs to none.
    """

    def __init__(self, store: Store, once: Once, root: JournalRoot, state: RunState, run_id: str) -> None:
        self._store = store
        self._once = once
        self._root = root
        self._state = state
        self._run_id = run_id

    def deliver(self, encoded: msgspec.Raw, snapshot: Path | None) -> None:
        """Carry out one call.

        Args:
            encoded: The call, as its record holds it.
            snapshot: The folder whose content it uploads.

        Raises:
            NotYetVisible: It names what another journal creates, and that is not created yet.
            Refused: The store will never accept it.
            DeliveryError: The store did not accept it this time.
        """
        try:
            call = calls.decode_call(encoded)
        except msgspec.MsgspecError as error:
            raise Refused(f"a call that this version does not know: {error}") from error
        created = {calls.CreateModel: "model_id", calls.CreateVersion: "version"}.get(type(call))
        try:
            self._deliver(call, snapshot)
        except Refused:
            if created is not None:
                self._state.made[getattr(call, created)] = ""  # what refers to it must not wait for it
            raise

    def _deliver(self, call: calls.Call, snapshot: Path | None) -> None:
        store = self._store
        match call:
            case calls.CreateExperiment(name, artifact_location, tags):
                store.experiment_id(name, artifact_location, tags)
            case calls.CreateModel():
                self._create_model(call)
            case calls.ModelFiles(model_id):
                self._upload(self._id(model_id), snapshot)
            case calls.FinishModel(model_id, status):
                store.finish_model(self._id(model_id), status)
            case calls.TagModel(model_id, tags):
                store.tag_model(self._id(model_id), {key: self._with_numbers(key, text) for key, text in tags.items()})
            case calls.UntagModel(model_id, key):
                with contextlib.suppress(Refused):  # an earlier attempt has deleted it
                    store.untag_model(self._id(model_id), key)
            case calls.AddModelParams(model_id, params):
                store.add_model_params(self._id(model_id), params)
            case calls.UseModel(model_id, run_id, step) if step is not None:
                store.link_model(self._run(run_id), self._id(model_id), step)
            case calls.UseModel(model_id, run_id):
                store.add_input(self._run(run_id), self._id(model_id))
            case calls.LinkPoints():
                self._link_points(call)
            case calls.CreateRegisteredModel(name, tags, description):
                store.register_model(name, tags, description)
            case calls.ChangeRegisteredModel(name, description):
                store.describe_registered_model(name, description)
            case calls.TagRegisteredModel(name, tags):
                store.tag_registered_model(name, tags)
            case calls.UntagRegisteredModel(name, key):
                store.untag_registered_model(name, key)
            case calls.CreateVersion():
                self._create_version(call)
            case calls.ChangeVersion(name, version, description):
                store.describe_version(name, self._id(version), description)
            case calls.TagVersion(name, version, tags):
                store.tag_version(name, self._id(version), tags)
            case calls.UntagVersion(name, version, key):
                store.untag_version(name, self._id(version), key)
            case calls.SetAlias(name, alias, version):
                store.set_alias(name, alias, self._id(version))
            case calls.DropAlias(name, alias):
                store.drop_alias(name, alias)

    def _id(self, text: str) -> str:
        """Return the server's id for one that may be provisional."""
        if (made := self._state.made.get(text)) == "":
            raise Refused(f"{text} is not on the server, because the store has refused it")
        return made or known_id(self._root, text)

    def _run(self, run_id: str) -> str:
        return known_id(self._root, run_id) if run_id else self._run_id

    def _create_model(self, call: calls.CreateModel) -> None:
        store, key = self._store, call.model_id
        run_id = None if call.run_id is None else self._run(call.run_id)
        experiment_id = self._experiment_id(call.experiment_id) if run_id is None else store.run(run_id).experiment_id
        if not is_key(key):
            raise Refused(f"the model's key {key[:200]!r} is not one")
        model = make_model(
            store,
            self._once,
            experiment_id,
            key,
            name=call.name,
            run_id=run_id,
            tags=call.tags,
            params=call.params,
            model_type=call.model_type,
        )
        self._state.made[key] = model.model_id

    def _experiment_id(self, experiment_id: str) -> str:
        return provisional_experiment(self._root, self._store, experiment_id) or experiment_id

    def _upload(self, model_id: str, folder: Path | None) -> None:
        if folder is None or not folder.is_dir():
            raise Refused("the snapshot of the model's files is gone")
        model = self._store.get_model(model_id)
        if (folder / "MLmodel").is_file():  # it was written with ids that may be provisional
            complete_mlmodel(folder / "MLmodel", model, self._run_id)
        self._store.upload_model_files(model, folder)

    def _link_points(self, call: calls.LinkPoints) -> None:
        run_id, model_id = self._run(call.run_id), self._id(call.model_id)
        for first in range(0, len(call.points), MAX_METRICS):
            points = [Point(*point) for point in call.points[first : first + MAX_METRICS]]
            self._store.link_metrics(run_id, model_id, points, call.dataset)

    def _create_version(self, call: calls.CreateVersion) -> None:
        store, key, tags = self._store, call.version, call.tags | {RECORD_TAG: call.version}
        run_id = "" if call.run_id is None else self._run(call.run_id)
        place = None if call.place is None else self._place(call)
        model_id = model_id_in(call.source) if place is None else ""

        def create() -> StoredVersion:
            if place is not None:
                return store.create_version_of_artifacts(call.name, run_id=run_id, place=place, tags=tags)
            if model_id and call.source.startswith("models:/"):
                model = store.get_model(self._id(model_id))
                return store.create_version(call.name, model=model, run_id=run_id, tags=tags)
            return store.create_version_of_uri(call.name, source=call.source, run_id=run_id, tags=tags)

        if model_id:
            self._id(model_id)  # before anything is created: it may not be there yet
        elif place is None and _is_model_uri(call.source):
            self._check_version(call.source)
        store.register_model(call.name)
        version = self._once.make(
            f"version:{key}",
            find=lambda: [one for one in store.versions(call.name) if one.tags.get(RECORD_TAG) == key],
            create=create,
            discard=lambda twin: store.delete_version(twin.name, twin.version),
            look_first=True,
        )
        if call.description:
            store.describe_version(call.name, version.version, call.description)
        self._state.made[key] = version.version

    def _place(self, call: calls.CreateVersion) -> str:
        """Return the folder among a run's artifacts that is the version's source."""
        if call.run_id is None:
            raise Refused(f"the version's source {call.place!r} is a folder of a run's artifacts, but no run is named")
        try:
            return str(artifact_place(call.place or "", "the version's source"))
        except InputError as error:
            raise Refused(str(error)) from error

    def _check_version(self, source: str) -> None:
        """Refuse a source that names no version of a model: MLflow answers it as a trouble that may pass."""
        found = _VERSION_URI.fullmatch(source)
        if found is None or not any(one.version == found[2] for one in self._store.versions(found[1])):
            raise Refused(f"the version's source {source[:200]!r} is no model or version in the store")

    def _with_numbers(self, key: str, text: str) -> str:
        """Return a model's tag; the one that lists its versions gets their numbers."""
        if key != VERSIONS_TAG:
            return text
        try:
            versions = json.loads(text)
            for one in versions:
                if str(one["version"]).startswith(PENDING_VERSION):
                    one["version"] = self._id(one["version"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return text
        return json.dumps(versions)


def _is_model_uri(source: str) -> bool:
    """Return whether MLflow takes `source` for one, as it does ``MODELS:/x``."""
    try:
        return urlsplit(source).scheme == "models"
    except ValueError as error:  # http://[
        raise Refused(f"the version's source {source[:200]!r} is no URI: {error}") from error
