"""Experiments: asked of the server, and named provisionally while that is away."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Experiment, ExperimentTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, TEMPORARILY_UNAVAILABLE
from mlflow.utils.validation import _validate_experiment_name

from tracking_callbacks._journal.calls import CreateExperiment
from tracking_callbacks._journal.provisional import Provisional
from tracking_callbacks._values.store_uri import is_local_location
from tracking_callbacks.mlflow_plugin.journals import Journals
from tracking_callbacks.mlflow_plugin.real_store import AwayError, RealStore

__all__ = ["Experiments"]

_STORE_SECONDS = 30.0  # that delivery may take to make a local store; on a busy machine it needs 4 to 10
_POLL_SECONDS = 0.1


class Experiments:
    """The experiments of one store, as the program knows them.

    Args:
        real: The real store.
        journals: What this process writes.
    """

    def __init__(self, real: RealStore, journals: Journals) -> None:
        self._real = real
        self._journals = journals
        self._seen: dict[str, Experiment] = {}  # what the server has answered, by its ids
        self._shown: dict[str, str] = {}  # the provisional ids that the program uses, by the server's

    def create(self, name: str, artifact_location: str | None, tags: Any) -> str:
        """Create an experiment and return its id; while the server is away, a provisional one."""
        try:
            created = str(self._real.ask("create_experiment", name, artifact_location, tags, briefly=True))
        except AwayError as away:
            _validate_experiment_name(name)
            if artifact_location and is_local_location(artifact_location):
                return self._create_when_answered(away, name, artifact_location, tags)
            if self._known(name) is not None:
                raise MlflowException(f"Experiment '{name}' already exists.", RESOURCE_ALREADY_EXISTS) from away
        else:
            return self._created(created, name, artifact_location, tags)
        provisional = self._provisional_id(name)
        texts = {tag.key: str(tag.value) for tag in tags or []}
        self._journals.writable_root()
        found = Provisional("experiment", name=name, artifact_location=artifact_location or None, tags=texts)
        self._journals.ids.promise(provisional, found)
        self._journals.call(self._journals.calls(), CreateExperiment(name, found.artifact_location, texts))
        return provisional

    def _created(self, experiment_id: str, name: str, artifact_location: str | None, tags: Any) -> str:
        self._seen[experiment_id] = Experiment(experiment_id, name, artifact_location or "", "active", tags)
        return experiment_id

    def _create_when_answered(self, away: AwayError, name: str, artifact_location: str, tags: Any) -> str:
        """Create an experiment whose artifact location no journal may name: wait for a store that delivery makes."""
        arguments = name, artifact_location, tags
        if urlsplit(self._real.uri).scheme.startswith("sqlite"):
            # Delivery makes the store to carry out any call; every store has this experiment.
            self._journals.call(self._journals.calls(), CreateExperiment("Default"))
            deadline = time.monotonic() + _STORE_SECONDS
            while time.monotonic() < deadline:
                with contextlib.suppress(AwayError):
                    created = self._real.ask("create_experiment", *arguments, briefly=False)
                    return self._created(str(created), *arguments)
                time.sleep(_POLL_SECONDS)
        raise MlflowException(
            f"{away.message} The experiment {name!r} cannot wait in the journal, because its artifact location is a "
            "folder.",
            TEMPORARILY_UNAVAILABLE,
        ) from away

    def get(self, experiment_id: str) -> Experiment:
        """Return an experiment; it has the id by which it was asked for."""
        provisional = self._journals.ids.find(experiment_id)
        if provisional is None or provisional.kind != "experiment":
            return self._ask(experiment_id)
        real = self.real_id(experiment_id, provisional)
        if real is None:
            return _pending(experiment_id, provisional)
        self._shown[real] = experiment_id
        try:
            experiment = self._ask(real)
        except AwayError:
            return _pending(experiment_id, provisional)
        experiment._experiment_id = experiment_id
        return experiment

    def _ask(self, experiment_id: str) -> Experiment:
        known = self._seen.get(experiment_id)
        try:
            experiment = self._real.ask("get_experiment", experiment_id, briefly=known is not None)
        except AwayError:
            if known is None:
                raise
            return known
        self._seen[experiment_id] = experiment
        return experiment

    def by_name(self, name: str) -> Experiment | None:
        """Return the experiment of a name; None if there is none, or none is known while the server is away."""
        try:
            experiment: Experiment | None = self._real.ask("get_experiment_by_name", name, briefly=True)
        except AwayError:
            return self._known(name)
        if experiment is not None:
            self._seen[experiment.experiment_id] = experiment
        return experiment

    def _known(self, name: str) -> Experiment | None:
        provisional = self._provisional_id(name)
        if (found := self._journals.ids.find(provisional)) is not None:
            return _pending(provisional, found)
        return next((one for one in self._seen.values() if one.name == name), None)

    def _provisional_id(self, name: str) -> str:
        """Return the provisional id of an experiment, which is the same in every process, and a number as MLflow's."""
        digest = hashlib.blake2b(f"{self._real.uri}\n{name}".encode(), digest_size=8).digest()
        return str(int.from_bytes(digest, "big") % 10**18)

    def real_id(self, provisional_id: str, provisional: Provisional) -> str | None:
        """Return the server's id of a provisional experiment, if the server has it and answers."""
        if provisional.real is None:
            try:
                experiment = self._real.ask("get_experiment_by_name", provisional.name, briefly=True)
            except AwayError:
                return None
            if experiment is None:
                return None
            self._seen[experiment.experiment_id] = experiment
            provisional.real = str(experiment.experiment_id)
            self._journals.ids.promise(provisional_id, provisional)
        return provisional.real

    def shown_id(self, experiment_id: str) -> str:
        """Return the id by which the program knows an experiment of the server."""
        return self._shown.get(experiment_id, experiment_id)

    def check(self, experiment_id: str) -> None:
        """Raise the server's error if an experiment cannot take runs.

        Raises:
            MlflowException: There is no such experiment, or it is deleted.
        """
        if experiment_id in self._seen or self._journals.ids.find(experiment_id) is not None:
            return
        try:
            experiment = self._real.ask("get_experiment", experiment_id, briefly=True)
        except AwayError:
            return
        if experiment.lifecycle_stage != "active":
            raise MlflowException(
                f"The experiment {experiment_id} must be in the 'active' state. "
                f"Current state is {experiment.lifecycle_stage}.",
                INVALID_PARAMETER_VALUE,
            )
        self._seen[experiment_id] = experiment

    def forget(self) -> None:
        """Forget what the server has answered, because the program changes it."""
        self._seen.clear()


def _pending(experiment_id: str, provisional: Provisional) -> Experiment:
    tags = [ExperimentTag(*item) for item in provisional.tags.items()]
    return Experiment(experiment_id, provisional.name, provisional.artifact_location or "", "active", tags)
