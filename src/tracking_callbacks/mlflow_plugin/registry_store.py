"""The model registry at ``journal+…``: writes go to the journal, everything else to the real registry."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_name,
    _validate_model_version_tag,
    _validate_registered_model_tag,
)

from tracking_callbacks._journal import calls
from tracking_callbacks._journal.provisional import PENDING_VERSION, NotKnownYetError
from tracking_callbacks._journal.records import now_ms
from tracking_callbacks._values.store_uri import absolute_uri, real_uri
from tracking_callbacks.mlflow_plugin.addresses import other_place, place_at
from tracking_callbacks.mlflow_plugin.delegation import REGISTRY, delegating
from tracking_callbacks.mlflow_plugin.journals import journals_for
from tracking_callbacks.mlflow_plugin.program_run import ProgramRun
from tracking_callbacks.mlflow_plugin.real_store import AwayError, RealStore, store_of

__all__ = ["JournaledRegistryStore", "PendingVersion"]


class PendingVersion(str):
    """The provisional number of a model version, which the registry has not given one yet."""

    def __int__(self) -> int:
        """Return 0, which no version has: MLflow's client checks with `int` that a version is a number."""
        return 0


@delegating(AbstractStore, REGISTRY)
class JournaledRegistryStore(AbstractStore):
    """MLflow's model registry, with a journal between the program and the real one.

    Args:
        store_uri: ``journal+`` and the URI of the real registry.
        tracking_uri: The tracking store's URI.
    """

    def __init__(self, store_uri: str, tracking_uri: str) -> None:
        super().__init__(store_uri, tracking_uri)
        uri, tracking = store_of(store_uri), absolute_uri(real_uri(tracking_uri))
        self._real = RealStore(uri, lambda: _real_registry_store(uri, tracking))
        self._journals = journals_for(tracking, uri)
        self._created: dict[str, RegisteredModel] = {}

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the real registry, once it has what this process has written."""
        self._journals.settle()
        args = tuple(self._version(one) if _is_pending(one) else one for one in args)
        kwargs = {key: self._version(one) if _is_pending(one) else one for key, one in kwargs.items()}
        return self._real.ask(method, *args, **kwargs)

    def _version(self, version: str) -> str:
        try:
            return self._journals.ids.real(version)
        except NotKnownYetError as error:
            raise AwayError(str(error), INVALID_PARAMETER_VALUE) from error

    def _call(self, call: calls.Call, run: ProgramRun | None = None) -> None:
        self._journals.call(run or self._journals.calls(), call)

    # -- registered models -------------------------------------------------------------------------------------------

    def create_registered_model(
        self,
        name: str,
        tags: Sequence[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,  # noqa: ARG002 - Databricks alone has it
    ) -> RegisteredModel:
        _validate_model_name(name)
        texts = {}
        for tag in tags or []:
            _validate_registered_model_tag(tag.key, tag.value)
            texts[tag.key] = tag.value
        if self._exists(name):
            raise MlflowException(f"Registered Model (name={name}) already exists.", RESOURCE_ALREADY_EXISTS)
        self._call(calls.CreateRegisteredModel(name, texts, description))
        now = now_ms()
        self._created[name] = RegisteredModel(
            name, now, now, description, latest_versions=[], tags=[RegisteredModelTag(*item) for item in texts.items()]
        )
        return self._created[name]

    def _exists(self, name: str) -> bool:
        if name in self._created:
            return True
        try:
            self._real.ask("get_registered_model", name, briefly=True)
        except AwayError:
            return False
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def get_registered_model(self, name: str) -> RegisteredModel:
        self._journals.settle()
        created = self._created.get(name)
        try:
            return self._real.ask("get_registered_model", name, briefly=created is not None)
        except AwayError:
            if created is None:
                raise
        except MlflowException as error:
            if created is None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return created

    def update_registered_model(
        self,
        name: str,
        description: str,
        deployment_job_id: str | None = None,  # noqa: ARG002 - Databricks alone has it
    ) -> RegisteredModel:
        model = self.get_registered_model(name)
        self._call(calls.ChangeRegisteredModel(name, description))
        model._description = description
        return model

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        answer = self.ask("rename_registered_model", name, new_name)
        self._created.pop(name, None)
        return answer

    def delete_registered_model(self, name: str) -> None:
        self.ask("delete_registered_model", name)
        self._created.pop(name, None)

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        _validate_model_name(name)
        _validate_registered_model_tag(tag.key, tag.value)
        self._check_registered(name)
        self._call(calls.TagRegisteredModel(name, {tag.key: tag.value}))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        _validate_model_name(name)
        self._check_registered(name)
        self._call(calls.UntagRegisteredModel(name, key))

    def _check_registered(self, name: str) -> None:
        """Raise the registry's error if there is no such model."""
        if name not in self._created:
            try:
                self._real.ask("get_registered_model", name, briefly=True)
            except AwayError:
                return

    # -- versions ----------------------------------------------------------------------------------------------------

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Sequence[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,  # noqa: ARG002 - Unity Catalog alone uses it
        model_id: str | None = None,
    ) -> ModelVersion:
        _validate_model_name(name)
        texts = {}
        for tag in tags or []:
            _validate_model_version_tag(tag.key, tag.value)
            texts[tag.key] = tag.value
        self._check_registered(name)
        place = place_at(source)
        named = model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)
        if place is not None and place.kind == "models":
            named = place.name
        artifacts = place.path if place is not None and place.kind == "runs" else None
        run = self._journals.home(named) if named else None
        if run is None and place is not None and place.kind == "runs":
            run = self._journals.own_run(place.name)
        run = run or self._journals.calls()
        provisional = f"{PENDING_VERSION}{uuid.uuid4().hex}"
        self._call(
            calls.CreateVersion(
                version=provisional,
                name=name,
                source=f"models:/{named}" if named else place.name if place is not None else source,
                run_id=run_id or (place.name if artifacts is not None and place is not None else None),
                place=artifacts,
                tags=texts,
                description=description,
            ),
            run,
        )
        self._journals.homes[provisional] = run
        now = now_ms()
        version = ModelVersion(
            name,
            PendingVersion(provisional),
            now,
            now,
            description,
            source=source,
            run_id=run_id,
            status="PENDING_REGISTRATION",
            tags=[ModelVersionTag(*item) for item in texts.items()],
            run_link=run_link,
            model_id=named,
        )
        number = self._journals.registered(run, provisional)
        if number is None:
            return version
        try:
            return self._real.ask("get_model_version", name, number, briefly=True)
        except AwayError:
            version._version = number
            version._status = "READY"
            return version

    def _await_model_version_creation(self, mv: ModelVersion, await_creation_for: int) -> None:
        """Wait no longer: the creation has waited for as long as the store answered."""

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        if _is_pending(version):
            try:
                version = self._journals.ids.real(version)
            except NotKnownYetError:
                return ModelVersion(name, PendingVersion(version), 0, status="PENDING_REGISTRATION")
        return self.ask("get_model_version", name, version)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        uri = str(self.ask("get_model_version_download_uri", name, version))
        return uri if uri.startswith("models:/") else other_place(uri)

    def update_model_version(self, name: str, version: str, description: str) -> ModelVersion:
        found = self.get_model_version(name, version)
        self._call(calls.ChangeVersion(name, str(version), description), self._journals.home(str(version)))
        found._description = description
        return found

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        _validate_model_name(name)
        _validate_model_version_tag(tag.key, tag.value)
        self._check_version(name, version)
        self._call(calls.TagVersion(name, str(version), {tag.key: tag.value}), self._journals.home(str(version)))

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self._check_version(name, version)
        self._call(calls.UntagVersion(name, str(version), key), self._journals.home(str(version)))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        _validate_model_name(name)
        _validate_model_alias_name(alias)
        self._check_version(name, version)
        self._call(calls.SetAlias(name, alias, str(version)), self._journals.home(str(version)))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._check_registered(name)
        self._call(calls.DropAlias(name, alias))

    def _check_version(self, name: str, version: str) -> None:
        """Raise the registry's error if there is no such version."""
        if not _is_pending(version):
            try:
                self._real.ask("get_model_version", name, str(version), briefly=True)
            except AwayError:
                return

    @property
    def supports_workspaces(self) -> bool:
        return False


def _is_pending(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(PENDING_VERSION)


def _real_registry_store(uri: str, tracking_uri: str) -> Any:
    from mlflow.tracking._model_registry import utils  # undocumented (MLflow 3.17.2): nothing public gives a store

    return utils._get_store(uri, tracking_uri)
