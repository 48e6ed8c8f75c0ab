"""Where configuration comes from: environment, then argument, then YAML file, then MLflow's own local default."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tracking_callbacks.errors import ConfigError
from tracking_callbacks.masking import mask_uri

__all__ = ["Settings", "project_root", "resolve_settings"]

logger = logging.getLogger("tracking_callbacks")

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
JOURNAL_VARIABLE = "TRACKING_CALLBACKS_JOURNAL"
SYSTEM_METRICS_VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

DEFAULT_EXPERIMENT = "Default"  # MLflow's own name for experiment 0
DEFAULT_FLUSH_TIMEOUT = 60.0
DEFAULT_DELIVERY_GRACE = 600.0
JOURNAL_FOLDER = ".tracking_callbacks"

_DATABASE_SCHEMES = {"sqlite", "mysql", "postgresql", "mssql"}
_MLFLOW_SCHEMES = {"http", "https", "file", "databricks", "databricks-uc", "uc"} | _DATABASE_SCHEMES
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?=:)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tracker was told, resolved.

    Attributes:
        tracking_uri: Absolute, with its credentials; show `shown_uri` instead.
        experiment_name: The experiment that new runs belong to.
        journal_root: The folder that holds a folder per run.
        working_folder: Where MLflow resolves a local artifact root (``./mlruns``) of a database store.
        offline: Keep the journal; deliver only by an explicit ``tracking-callbacks sync``.
        flush_timeout: Seconds that ``flush`` and the interpreter's exit wait at most.
        delivery_grace: Seconds that delivery goes on trying after the training process has gone.
        max_staged_bytes: Bytes that a run's waiting checkpoints may take; None: half of the room that there is.
        tags: Tags that every run of the tracker carries.
        config_files: Absolute paths of the settings files that runs were made from, the tracker's own among them.
        log_everything: Record what nobody asked for; callbacks ask this before they log more than params and metrics.
        log_config: Record the command line, the settings and the `config_files`.
        log_source: Record git's state, the uncommitted changes and the entry script.
        log_environment: Record Python, platform, hardware and the versions of installed packages.
        log_logs: Record what passes through `logging`.
        log_figures: Have pictures drawn of the run.
        log_system_metrics: Sample the machine.
        log_datasets: Record the datasets that a training is given, as inputs.
        log_sample_rows: Log some of their rows.
    """

    tracking_uri: str = field(repr=False)
    experiment_name: str
    journal_root: Path
    working_folder: Path
    offline: bool
    flush_timeout: float
    delivery_grace: float
    max_staged_bytes: int | None
    tags: Mapping[str, str]
    config_files: tuple[Path, ...] = ()
    log_everything: bool = True
    log_config: bool = True
    log_source: bool = True
    log_environment: bool = True
    log_logs: bool = True
    log_figures: bool = True
    log_system_metrics: bool = False
    log_datasets: bool = True
    log_sample_rows: bool = False

    @property
    def shown_uri(self) -> str:
        """The tracking URI without its credentials."""
        return mask_uri(self.tracking_uri)


def resolve_settings(
    tracking_uri: str | os.PathLike[str] | None = None,
    experiment_name: str | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    journal_root: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    flush_timeout: float | None = None,
    delivery_grace: float | None = None,
    max_staged_bytes: int | None = None,
    tags: Mapping[str, object] | None = None,
    config_files: Iterable[str | os.PathLike[str]] | None = None,
    log_everything: bool | None = None,
    log_config: bool | None = None,
    log_source: bool | None = None,
    log_environment: bool | None = None,
    log_logs: bool | None = None,
    log_figures: bool | None = None,
    log_system_metrics: bool | None = None,
    log_datasets: bool | None = None,
    log_sample_rows: bool | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Resolve a tracker's settings; see `MLflowTracker` for the arguments.

    Raises:
        ConfigError: A value has the wrong type or form, or the config file is absent, unreadable, or holds an
            unknown key; the message names the file, the key and what was expected.
    """
    given: dict[str, Any] = {
        "tracking_uri": tracking_uri,
        "experiment_name": experiment_name,
        "journal_root": journal_root,
        "offline": offline,
        "flush_timeout": flush_timeout,
        "delivery_grace": delivery_grace,
        "max_staged_bytes": max_staged_bytes,
        "tags": tags,
        "config_files": config_files,
        "log_everything": log_everything,
        "log_config": log_config,
        "log_source": log_source,
        "log_environment": log_environment,
        "log_logs": log_logs,
        "log_figures": log_figures,
        "log_system_metrics": log_system_metrics,
        "log_datasets": log_datasets,
        "log_sample_rows": log_sample_rows,
    }
    chosen = _read_config(Path(config)) if config is not None else {}
    for name, value in given.items():
        if value is not None:
            chosen[name] = _CHECKS[name](value, name, "argument")
    _override(chosen, "tracking_uri", TRACKING_URI_VARIABLE, environ, show=mask_uri)
    _override(chosen, "experiment_name", EXPERIMENT_VARIABLE, environ)
    _override(chosen, "journal_root", JOURNAL_VARIABLE, environ)

    everything = chosen.get("log_everything", True)
    own_config = [Path(os.path.abspath(config))] if config is not None else []
    root = project_root(Path.cwd())
    uri, working_folder = (
        (_absolute(_check_uri(chosen["tracking_uri"])), Path.cwd())
        if "tracking_uri" in chosen
        else (_local_default(root), root)
    )
    return Settings(
        tracking_uri=uri,
        experiment_name=chosen.get("experiment_name", DEFAULT_EXPERIMENT),
        journal_root=Path(os.path.abspath(chosen.get("journal_root", root / JOURNAL_FOLDER))),
        working_folder=working_folder,
        offline=chosen.get("offline", False),
        flush_timeout=chosen.get("flush_timeout", DEFAULT_FLUSH_TIMEOUT),
        delivery_grace=chosen.get("delivery_grace", DEFAULT_DELIVERY_GRACE),
        max_staged_bytes=chosen.get("max_staged_bytes"),
        tags=chosen.get("tags", {}),
        config_files=(*own_config, *chosen.get("config_files", ())),
        log_everything=everything,
        log_config=chosen.get("log_config", everything),
        log_source=chosen.get("log_source", everything),
        log_environment=chosen.get("log_environment", everything),
        log_logs=chosen.get("log_logs", everything),
        log_figures=chosen.get("log_figures", everything),
        # As mlflow.start_run does it: the variable stands where no argument was given.
        log_system_metrics=chosen.get("log_system_metrics", everything and _is_on(environ, SYSTEM_METRICS_VARIABLE)),
        log_datasets=chosen.get("log_datasets", everything),
        log_sample_rows=chosen.get("log_sample_rows", False),
    )


def project_root(start: Path) -> Path:
    """Return the nearest of `start` and its parents that holds ``.git`` or ``pyproject.toml``, else `start`."""
    for folder in (start, *start.parents):
        if (folder / ".git").exists() or (folder / "pyproject.toml").is_file():
            return folder
    return start


def _is_on(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "").lower() in ("true", "1")  # as MLflow reads it


def _override(
    chosen: dict[str, Any],
    name: str,
    variable: str,
    environ: Mapping[str, str],
    show: Callable[[str], str] = str,
) -> None:
    value = environ.get(variable)
    if not value:
        return
    if name in chosen and str(chosen[name]) != value:
        logger.warning(
            "%s=%s from the environment overrides %s=%s", variable, show(value), name, show(str(chosen[name]))
        )
    chosen[name] = value


# -- types -----------------------------------------------------------------------------------------------------------


def _wrong(value: object, name: str, where: str, expected: str) -> ConfigError:
    return ConfigError(f"{where}: {name}: expected {expected}, got {value!r} ({type(value).__name__})", setting=name)


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(value, name, where, "a text that is not empty")
    return value


def _path(value: object, name: str, where: str) -> str:
    return _text(os.fspath(value) if isinstance(value, os.PathLike) else value, name, where)


def _flag(value: object, name: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, name, where, "true or false")
    return value


def _seconds(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise _wrong(value, name, where, "a number of seconds, 0 or more")
    return float(value)


def _bytes(value: object, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(value, name, where, "a number of bytes, 0 or more")
    return value


def _tags(value: object, name: str, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise _wrong(value, name, where, "a mapping of tag names to values")
    return {key: str(inner) for key, inner in value.items()}


def _files(value: object, name: str, where: str) -> tuple[Path, ...]:
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable):
        raise _wrong(value, name, where, "a list of paths")
    paths = tuple(Path(os.path.abspath(_path(one, name, where))) for one in value)
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{where}: {name}: expected files, there is none at {str(path)!r}", setting=name)
    return paths


_CHECKS: dict[str, Callable[[object, str, str], Any]] = {
    "tracking_uri": _path,
    "experiment_name": _text,
    "journal_root": _path,
    "offline": _flag,
    "flush_timeout": _seconds,
    "delivery_grace": _seconds,
    "max_staged_bytes": _bytes,
    "tags": _tags,
    "config_files": _files,
    "log_everything": _flag,
    "log_config": _flag,
    "log_source": _flag,
    "log_environment": _flag,
    "log_logs": _flag,
    "log_figures": _flag,
    "log_system_metrics": _flag,
    "log_datasets": _flag,
    "log_sample_rows": _flag,
}
# The config file's own word for the experiment; the constructor's word is understood as well.
_CONFIG_KEYS = {"default_experiment_name": "experiment_name"} | {name: name for name in _CHECKS}


def _read_config(path: Path) -> dict[str, Any]:
    import yaml  # 15 ms that only users of a config file pay

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}", setting="config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path}: expected YAML, got: {error}", setting="config") from error
    where = f"config file {path}"
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys and values, got {type(content).__name__}", setting="config")
    chosen: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _CONFIG_KEYS:
            known = ", ".join(sorted(_CONFIG_KEYS))
            raise ConfigError(f"{where}: unknown key {key!r}; expected one of: {known}", setting=str(key))
        name = _CONFIG_KEYS[key]
        if name in chosen:
            raise ConfigError(f"{where}: {key!r} gives {name} a second time", setting=key)
        if value is not None:
            chosen[name] = _CHECKS[name](value, key, where)
    return chosen


# -- tracking URI ----------------------------------------------------------------------------------------------------


def _check_uri(uri: str) -> str:
    def malformed(expected: str) -> ConfigError:
        return ConfigError(f"tracking_uri: expected {expected}, got {mask_uri_safely(uri)!r}", setting="tracking_uri")

    scheme = _scheme_of(uri)
    if scheme is None:
        return uri  # a folder, or the plain word "databricks"
    base = scheme.split("+")[0]
    if base not in _MLFLOW_SCHEMES and base not in _plugin_schemes():
        raise malformed(f"a scheme that MLflow knows ({', '.join(sorted(_MLFLOW_SCHEMES))}) or a folder")
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise malformed(f"a well-formed URI ({error})") from error
    if base in ("http", "https") and not host:
        raise malformed(f"a host after {scheme}://")
    if base in _DATABASE_SCHEMES and "://" not in uri:
        raise malformed(f"{scheme}:// and a database")
    if base == "sqlite" and not _sqlite_path(uri):
        raise malformed("a file, as in sqlite:///mlflow.db (a database in memory cannot be shared with delivery)")
    return uri


def mask_uri_safely(uri: str) -> str:
    """Return `uri` masked, also where it is too malformed to be split into parts."""
    try:
        return mask_uri(uri)
    except ValueError:
        return re.sub(r"//[^/]*@", "//***@", uri)


def _scheme_of(uri: str) -> str | None:
    match = _SCHEME.match(uri)
    return match.group().lower() if match and len(match.group()) > 1 else None  # one letter: a Windows drive


def _plugin_schemes() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group="mlflow.tracking_store")}


def _sqlite_path(uri: str) -> str:
    path = unquote(urlsplit(uri).path.removeprefix("/"))
    return "" if path == ":memory:" else path


def _absolute(uri: str) -> str:
    """Return `uri` with a relative local path resolved now: the trainer may change its folder, delivery has its own."""
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


def _local_default(root: Path) -> str:
    old_store = root / "mlruns"
    if any(old_store.glob("[0-9]*/meta.yaml")):
        logger.warning("%s holds runs of MLflow's file store: new runs go there too, as with MLflow itself", old_store)
        return old_store.as_uri()
    return f"sqlite:///{root / 'mlflow.db'}"
