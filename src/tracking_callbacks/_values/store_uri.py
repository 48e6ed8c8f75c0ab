"""Tracking and registry URIs: checks that MLflow can use them, and makes relative local paths absolute."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tracking_callbacks._values.secrets import mask_uri
from tracking_callbacks.errors import ConfigError

__all__ = [
    "JOURNAL_PREFIX",
    "absolute_uri",
    "check_uri",
    "is_local_location",
    "is_local_store",
    "local_path",
    "real_uri",
    "run_link",
]

JOURNAL_PREFIX = "journal+"  # of the URIs of the MLflow plugin, see `mlflow_plugin`; the rest is the real store

_DATABASE_SCHEMES = {"sqlite", "mysql", "postgresql", "mssql"}
_MLFLOW_SCHEMES = {"http", "https", "file", "databricks", "databricks-uc", "uc"} | _DATABASE_SCHEMES
# Plugins that bring a scheme, and the package that usually has them.
_PLUGIN_PACKAGES = {"azureml": "azureml-mlflow", "arn": "sagemaker-mlflow"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?=:)")


def real_uri(uri: str) -> str:
    """Return the URI of the store itself: `uri` without the prefix of the MLflow plugin."""
    return uri.removeprefix(JOURNAL_PREFIX)


def is_local_location(uri: str) -> bool:
    """Return whether an artifact location is a folder of the machine that writes there."""
    scheme = _scheme_of(uri)
    return scheme is None or scheme.lower() == "file" or len(scheme) == 1


def is_local_store(uri: str) -> bool:
    """Return whether the store at an absolute `uri` is a file or a folder."""
    return uri.startswith(("sqlite:", "file:"))


def local_path(uri: str) -> Path | None:
    """Return the file or folder of the store at an absolute `uri`; None where it is neither."""
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    return Path(uri.partition(":///")[2].partition("?")[0]) if uri.startswith("sqlite") else None


def run_link(uri: str, experiment_id: str | None, run_id: str | None) -> str:
    """Return the link to a run in the MLflow UI; empty where the store has no UI, or the id is unknown."""
    if not uri.startswith(("http://", "https://")) or run_id is None:
        return ""
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id or 0}/runs/{run_id}"


def check_uri(uri: str, setting: str) -> str:
    """Return the real store's URI in `uri`, a tracking or registry URI.

    Args:
        uri: The URI, or the path of a folder.
        setting: Name of the setting that it was given as, for the error.

    Raises:
        ConfigError: Its scheme is unknown, or it is malformed.
    """

    def malformed(expected: str) -> ConfigError:
        return ConfigError(f"{setting}: expected {expected}, got {_masked(uri)!r}", setting=setting)

    if uri.startswith(JOURNAL_PREFIX) and _scheme_of(real_uri(uri)) is None:
        raise malformed(f"the real store after {JOURNAL_PREFIX}, as in {JOURNAL_PREFIX}https://mlflow.example.com")
    uri = real_uri(uri)
    scheme = _scheme_of(uri)
    if scheme is None:
        return uri  # a folder, or the plain word "databricks"
    base = scheme.split("+")[0]
    known = base in _DATABASE_SCHEMES or scheme in _MLFLOW_SCHEMES
    if not known and scheme not in _plugin_schemes():
        if package := _PLUGIN_PACKAGES.get(scheme):
            raise malformed(f"an installed MLflow plugin for {scheme}:, which the package {package} brings")
        if uri[len(scheme) + 1 :].split("/")[0].isdigit():
            raise malformed("http:// or https:// before the host")
        raise malformed(
            f"a scheme that MLflow knows ({', '.join(sorted(_MLFLOW_SCHEMES))}), one that an installed plugin brings "
            "(an entry point of the group mlflow.tracking_store), or a folder"
        )
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise malformed(f"a well-formed URI ({error})") from error
    if scheme in ("http", "https") and not host:
        raise malformed(f"a host after {scheme}://")
    if base in _DATABASE_SCHEMES and "://" not in uri:
        raise malformed(f"{scheme}:// and a database")
    if base == "sqlite" and not _sqlite_path(uri):
        raise malformed("a file, as in sqlite:///mlflow.db (a database in memory cannot be shared with delivery)")
    return uri


def _masked(uri: str) -> str:
    """Return `uri` masked, even if it is too malformed to be split into parts."""
    try:
        return mask_uri(uri)
    except ValueError:
        return re.sub(r"//[^/]*@", "//***@", uri)


def _scheme_of(uri: str) -> str | None:
    match = _SCHEME.match(uri)
    return match.group().lower() if match and len(match.group()) > 1 else None  # one letter: a Windows drive


def _plugin_schemes() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name.lower() for entry in entry_points(group="mlflow.tracking_store")}


def _sqlite_path(uri: str) -> str:
    path = unquote(urlsplit(uri).path.removeprefix("/"))
    return "" if path == ":memory:" else path


def absolute_uri(uri: str) -> str:
    """Return the real store's URI in `uri`, with a relative local path made absolute.

    The trainer may change its working folder, and the delivery process has a different one.
    """
    uri = real_uri(uri)
    scheme = _scheme_of(uri)
    if scheme is None:
        return uri if uri in ("databricks", "databricks-uc", "uc") else Path(os.path.abspath(uri)).as_uri()
    if scheme == "file" and not uri.startswith("file:/"):
        return Path(os.path.abspath(unquote(uri.removeprefix("file:")))).as_uri()
    if scheme.split("+")[0] == "sqlite":
        path = _sqlite_path(uri)
        if not os.path.isabs(path):
            head, _, query = uri.partition("?")
            return f"{head.split('://')[0]}:///{os.path.abspath(path)}" + (f"?{query}" if query else "")
    return uri
