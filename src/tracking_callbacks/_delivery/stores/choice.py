"""Decides how a store is reached: over REST, which is light, or through MLflow's client, which knows every kind."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from tracking_callbacks._delivery.stores.direct_files import DirectFiles
from tracking_callbacks._delivery.stores.store import Store

__all__ = ["needs_mlflow", "store_for"]

# What only MLflow's client can do to a request: plugins and signatures that are computed for each one.
_AUTH_VARIABLES = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
_PLUGIN_GROUPS = ("mlflow.request_header_provider", "mlflow.request_auth_provider")
_OFF = ("", "false", "0")


def store_for(uri: str, registry_uri: str | None, direct: DirectFiles) -> Store:
    """Return the store at `uri`.

    Args:
        uri: Tracking URI, with its credentials.
        registry_uri: URI of the model registry, with its credentials. None means the tracking store's registry.
        direct: Uploads to artifact roots that a server does not proxy.
    """
    if needs_mlflow(uri, registry_uri):
        from tracking_callbacks._delivery.stores.client import MlflowStore

        return MlflowStore(uri, registry_uri)
    from tracking_callbacks._delivery.stores.rest import RestStore

    return RestStore(uri, registry_uri, direct)


def needs_mlflow(uri: str, registry_uri: str | None) -> bool:
    """Return whether the calls to a store need MLflow's client."""
    if any(not place.startswith(("http://", "https://")) for place in (uri, registry_uri or uri)):
        return True
    if any(os.environ.get(name, "").lower() not in _OFF for name in _AUTH_VARIABLES):
        return True
    return any(entry_points(group=group) for group in _PLUGIN_GROUPS)
