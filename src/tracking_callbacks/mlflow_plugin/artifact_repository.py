"""The artifacts at ``journal-artifacts:``: staged at once, read from where they wait, else from the real store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tracking_callbacks._journal import calls, records
from tracking_callbacks._values.store_uri import JOURNAL_PREFIX
from tracking_callbacks._writing.snapshots import snapshot
from tracking_callbacks.mlflow_plugin.addresses import Place, place_at
from tracking_callbacks.mlflow_plugin.reading import StagedFile, listed
from tracking_callbacks.mlflow_plugin.real_store import AwayError, store_of
from tracking_callbacks.mlflow_plugin.tracking_store import JournaledTrackingStore

__all__ = ["JournaledArtifacts", "repository_at"]


def repository_at(address: str, tracking_uri: str | None, registry_uri: str | None) -> ArtifactRepository:
    """Return the artifacts at an address; what lies elsewhere in the real store is read and written there."""
    place = place_at(address)
    if place is None:
        raise MlflowException(f"{address!r} is not an address of artifacts", INVALID_PARAMETER_VALUE)
    journaled = next(
        (uri for uri in (tracking_uri, mlflow.get_tracking_uri()) if uri and uri.startswith(JOURNAL_PREFIX)), None
    )
    if journaled is None:
        raise MlflowException(
            f"{address} belongs to a tracking URI that begins with {JOURNAL_PREFIX}; the present one is "
            f"{mlflow.get_tracking_uri()}",
            INVALID_PARAMETER_VALUE,
        )
    if place.kind == "at":
        uri = "/".join(filter(None, (place.name.rstrip("/"), place.path)))
        return get_artifact_repository(uri, tracking_uri=store_of(journaled))
    return JournaledArtifacts(address, place, journaled, registry_uri)


class JournaledArtifacts(ArtifactRepository):
    """The artifacts of a run or the files of a logged model.

    Args:
        address: Where they lie, as the program knows it.
        place: What that names.
        tracking_uri: ``journal+`` and the real store's URI.
        registry_uri: The model registry's URI.
    """

    def __init__(self, address: str, place: Place, tracking_uri: str, registry_uri: str | None) -> None:
        super().__init__(address, tracking_uri=tracking_uri, registry_uri=registry_uri)
        self._place = place
        self._real: ArtifactRepository | None = None

    @property
    def _store(self) -> JournaledTrackingStore:
        from mlflow.tracking._tracking_service import utils  # undocumented (MLflow 3.17.2)

        store: JournaledTrackingStore = utils._get_store(self.tracking_uri)
        return store

    # -- writing -----------------------------------------------------------------------------------------------------

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        with open(local_file, "rb"):  # raises as MLflow does, where there is none
            pass
        self._stage(Path(local_file), Path(local_file).name, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        if os.path.isdir(local_dir):
            self._stage(Path(local_dir), "", artifact_path)

    def _stage(self, source: Path, name: str, artifact_path: str | None) -> None:
        folder = "/".join(filter(None, (self._place.path, (artifact_path or "").strip("/"))))
        run = self._store.run_of(self._place)
        if self._place.kind == "runs":
            run.journal.stage(
                name,
                lambda target: snapshot(source, target),
                lambda staged: records.Artifact(staged, folder or None),
            )
            return

        def write(target: Path) -> None:
            below = target / folder / name
            below.parent.mkdir(parents=True, exist_ok=True)
            snapshot(source, below)

        call = calls.encode_call(calls.ModelFiles(self._place.name))
        run.journal.stage("", write, lambda staged: records.StoreCall(call, staged))

    # -- reading -----------------------------------------------------------------------------------------------------

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        below = "/".join(filter(None, (self._place.path, (path or "").strip("/"))))
        staged = listed(list(self._staged()), below or None)
        complete = self._store.begins_here(self._place)
        try:
            there = self._ask("list_artifacts", below or None, briefly=complete)
        except AwayError:
            if not complete:
                raise
            there = []
        found = {one.path: one for one in [*there, *staged]}
        prefix = f"{self._place.path}/" if self._place.path else ""
        return sorted(
            (FileInfo(one.path.removeprefix(prefix), one.is_dir, one.file_size) for one in found.values()),
            key=lambda one: str(one.path),
        )

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        place = "/".join(filter(None, (self._place.path, remote_file_path)))
        for file in reversed([file for file in self._staged() if file.place == place]):
            try:
                shutil.copyfile(file.path, local_path)
            except FileNotFoundError:  # it has just been uploaded
                continue
            return
        self._ask("_download_file", place, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._ask("delete_artifacts", "/".join(filter(None, (self._place.path, artifact_path))) or None)

    def _staged(self) -> Iterator[StagedFile]:
        return self._store.staged_files(self._place)

    def _ask(self, method: str, *args: Any, briefly: bool = False) -> Any:
        return self._store.ask_repository(self._place, method, *args, briefly=briefly)
