"""What MLflow's entry points name: it loads this module while it is being imported, so nothing heavy is imported here.

MLflow builds a store under a lock that is not re-entrant, so a builder must never ask for another store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractRegistryStore
    from mlflow.store.tracking.abstract_store import AbstractStore

__all__ = ["artifact_repository", "registry_store", "tracking_store"]


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> AbstractStore:  # noqa: ARG001 - MLflow passes it
    """Return the tracking store at ``journal+…``."""
    from tracking_callbacks.mlflow_plugin.tracking_store import JournaledTrackingStore

    return JournaledTrackingStore(store_uri)


def registry_store(store_uri: str, tracking_uri: str | None = None) -> AbstractRegistryStore:
    """Return the model registry at ``journal+…``."""
    from tracking_callbacks.mlflow_plugin.registry_store import JournaledRegistryStore

    return JournaledRegistryStore(store_uri, tracking_uri or store_uri)


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Return the artifacts at ``journal-artifacts:…``."""
    from tracking_callbacks.mlflow_plugin.artifact_repository import repository_at

    return repository_at(artifact_uri, tracking_uri, registry_uri)
