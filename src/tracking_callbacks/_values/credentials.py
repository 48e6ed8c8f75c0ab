"""Pure: which environment variables hold a store's credentials, and which place a URI names."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["CREDENTIALS", "credentials_in", "same_place"]

# What MLflow's client, or a database's driver, sends to whatever host a URI names.
CREDENTIALS = frozenset(
    {
        "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH",
        "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "PGPASSWORD", "MYSQL_PWD",
    }
)  # fmt: skip

# Beginnings of the variables that cloud clients read keys and tokens from, for the artifacts that the server leaves to
# its clients.
_CLOUDS = ("AWS_", "AZURE_", "GOOGLE_", "DATABRICKS_")

_PORTS = {"http": 80, "https": 443}


def credentials_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables among `environment` that a store's or its artifacts' credentials come from."""
    return {name: text for name, text in environment.items() if name in CREDENTIALS or name.startswith(_CLOUDS)}


def same_place(uri: str, other: str) -> bool:
    """Return whether two URIs name the same scheme, host and port; a URI without a host only equals itself."""
    place = _place(uri)
    return uri == other if place is None else place == _place(other)


def _place(uri: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _PORTS.get(parts.scheme)
