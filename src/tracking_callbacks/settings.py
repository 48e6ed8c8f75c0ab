"""Where runs go, what they record and how they are delivered; checked when a tracker is built.

Environment variables take precedence over arguments, arguments over the config file, and that over the defaults;
``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` alone only counts where nothing is set, as in MLflow itself. One declaration,
the structs below, checks arguments and config files alike.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._values.alerts import Alert, alerts_from
from tracking_callbacks._values.checking import check_fields, fields_of, struct_from
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._values.secrets import mask_uri
from tracking_callbacks._values.store_uri import absolute_uri, check_uri, real_uri
from tracking_callbacks.errors import ConfigError

__all__ = ["Delivery", "Recording", "Settings", "is_switched_on", "resolve_settings"]

logger = logging.getLogger(__name__)

EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT_ID_VARIABLE = "MLFLOW_EXPERIMENT_ID"
JOURNAL_VARIABLE = "TRACKING_CALLBACKS_JOURNAL"
CONFIG_VARIABLE = "TRACKING_CALLBACKS_CONFIG"
SYSTEM_METRICS_VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

# Transformers' own callback knows the first one.
DISABLING_VARIABLES = ("DISABLE_MLFLOW_INTEGRATION", "TRACKING_CALLBACKS_DISABLED")

DEFAULT_EXPERIMENT = "Default"  # MLflow's own name for experiment 0
JOURNAL_FOLDER = ".tracking_callbacks"

Struct = TypeVar("Struct", bound=msgspec.Struct)

# The descriptions are what an error message says was expected.
Flag = Annotated[bool, Meta(description="true or false")]
Seconds = Annotated[float, Meta(ge=0, description="a number of seconds, 0 or more")]
Bytes = Annotated[int, Meta(ge=0, description="a number of bytes, 0 or more")]
Text = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]
Tags = Annotated[dict[Text, Any], Meta(description="a mapping of tag names to values")]
if TYPE_CHECKING:
    PathText = str | os.PathLike[str]
    Paths = Iterable[PathText]
else:  # paths become texts before they are checked
    PathText = Annotated[str, Meta(pattern=r"\S", description="a text or path that is not empty")]
    Paths = Annotated[tuple[PathText, ...], Meta(description="a list of paths")]

# The default of every field: not given here. `resolve_settings` fills it in, so no resolved setting is None.
_NOT_GIVEN: Any = None


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run records automatically. A field that is left out comes from the config file, else is the default.

    Attributes:
        config: The command line, the resolved settings and the config files, under ``config/``. Default True.
        config_files: Paths of further config files that runs are made from, logged under ``config/files/`` with
            secrets masked. Default none.
        source: Git commit, branch, remote and dirty flag as tags; the uncommitted changes and the entry script under
            ``source/``. Default True.
        environment: Python, platform, hardware and installed versions under ``environment/``; the framework and its
            version as tags. Default True.
        python_logging: What passes through `logging`, under ``logs/``. Default True.
        output: What the process and its children write to stdout and stderr, under ``logs/``. Default False, because
            it puts a process between the program and its terminal.
        pictures: Pictures of the run, under ``figures/`` and next to an evaluation's report. Default True.
        reports: The tables behind the metrics: classification reports, episodes, equity curves. Default True.
        system_metrics: CPU, memory, disk, network and GPUs as MLflow's ``system/…`` metrics. Default as
            ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says. Needs psutil, and nvidia-ml-py for GPUs.
        datasets: The datasets that a training run is given, as inputs of the run. Default True.
        sample_rows: Twenty rows of each dataset, as tables under ``data/``. Default False, because data may be
            private.
        input_example: A row of the evaluation as the input example of a text model, which its server answers. Default
            True; without it the example is a well-known sentence.
        importance: What decisions depend on, under the folder of the last evaluation: the features of an agent's
            observations, the words of a text classifier's rows (which needs the extra ``explain`` and shows these
            rows). Default False, because it takes up to two seconds, for a classifier up to five.
        description: A report card as the description of the run and of the versions that it registers, unless you have
            written one yourself. Default True.
        models: The model that a callback has trained, also where no argument of the callback asks for it. Default
            True.

    Raises:
        ConfigError: A value has the wrong type; the message names the field and what was expected.
    """

    config: Flag = _NOT_GIVEN
    config_files: Paths = _NOT_GIVEN
    source: Flag = _NOT_GIVEN
    environment: Flag = _NOT_GIVEN
    python_logging: Flag = _NOT_GIVEN
    output: Flag = _NOT_GIVEN
    pictures: Flag = _NOT_GIVEN
    reports: Flag = _NOT_GIVEN
    system_metrics: Flag = _NOT_GIVEN
    datasets: Flag = _NOT_GIVEN
    sample_rows: Flag = _NOT_GIVEN
    input_example: Flag = _NOT_GIVEN
    importance: Flag = _NOT_GIVEN
    description: Flag = _NOT_GIVEN
    models: Flag = _NOT_GIVEN

    def __post_init__(self) -> None:
        check_fields(self, "Recording")

    @classmethod
    def only(cls, **fields: Any) -> Recording:
        """Return a recording of these fields and nothing else: ``Recording.only(source=True)``.

        Raises:
            TypeError: A field is unknown.
        """
        return msgspec.structs.replace(_NOTHING, **fields)


class Delivery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run reaches the store. A field that is left out comes from the config file, else is the default.

    Attributes:
        journal_root: Folder that keeps what is not delivered yet. ``TRACKING_CALLBACKS_JOURNAL`` takes precedence.
            Default ``.tracking_callbacks`` at the project root.
        offline: Keep everything in the journal until ``tracking-callbacks sync``. Default False.
        flush_timeout: Seconds that `Run.flush` and the interpreter's exit wait for delivery at most. Default 60.
        wait_at_end: Seconds that ``train()`` and ``learn()`` wait at most until the model that they register is
            registered. They do not wait for a store that does not answer. Default 30.
        grace: Seconds that delivery goes on trying after the training process has ended. Default 600.
        max_checkpoint_bytes: Bytes that the waiting checkpoints of a run may take on the disk; beyond it the oldest
            are dropped (`Run.log_checkpoint`). Default half of the room that the disk has for them.

    Raises:
        ConfigError: A value has the wrong type; the message names the field and what was expected.
    """

    journal_root: PathText = _NOT_GIVEN
    offline: Flag = _NOT_GIVEN
    flush_timeout: Seconds = _NOT_GIVEN
    wait_at_end: Seconds = _NOT_GIVEN
    grace: Seconds = _NOT_GIVEN
    max_checkpoint_bytes: Bytes | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Delivery")


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a config file may hold, and what a tracker's arguments are."""

    tracking_uri: PathText = _NOT_GIVEN
    experiment_name: Text = _NOT_GIVEN
    default_experiment_name: Text = _NOT_GIVEN  # the config file's own word for it
    registry_uri: PathText = _NOT_GIVEN
    tags: Tags = _NOT_GIVEN
    record: Annotated[Flag | Recording, Meta(description=f"true, false, or {fields_of(Recording)}")] = _NOT_GIVEN
    delivery: Annotated[Delivery, Meta(description=fields_of(Delivery))] = _NOT_GIVEN
    promote: Annotated[Promotion, Meta(description=fields_of(Promotion))] = _NOT_GIVEN
    alerts: Annotated[list[Any], Meta(description="a list of alerts")] = _NOT_GIVEN


_GROUPS: dict[str, type[msgspec.Struct]] = {"record": Recording, "delivery": Delivery, "promote": Promotion}

_EVERYTHING = Recording(
    config=True, config_files=(), source=True, environment=True, python_logging=True, output=False,
    pictures=True, reports=True, system_metrics=False, datasets=True, sample_rows=False, input_example=True,
    importance=False, description=True, models=True,
)  # fmt: skip
_NOTHING = Recording(
    config=False, config_files=(), source=False, environment=False, python_logging=False, output=False,
    pictures=False, reports=False, system_metrics=False, datasets=False, sample_rows=False, input_example=False,
    importance=False, description=False, models=False,
)  # fmt: skip
_DELIVERY = Delivery(offline=False, flush_timeout=60.0, wait_at_end=30.0, grace=600.0)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tracker was given, resolved: no field of `record` and `delivery` is left open.

    Attributes:
        tracking_uri: Absolute, with its credentials; show `masked_uri` instead.
        registry_uri: URI of the model registry, where it is not the tracking store's own; with its credentials.
        experiment_name: The experiment that new runs belong to, or a label for it if only its id is known.
        experiment_id: The store's id of the experiment, where the program has chosen one by ``mlflow.set_experiment``
            or ``MLFLOW_EXPERIMENT_ID``.
        working_folder: Where MLflow resolves a local artifact root (``./mlruns``) of a database store.
        tags: Tags that every run of the tracker carries.
        config_file: Absolute path of the tracker's own config file.
        record: What runs record automatically; `config_files` are absolute paths.
        delivery: How runs are delivered; `journal_root` is an absolute path.
        promote: When the version of a registered model takes over an alias.
        alerts: What the user wants to be told of.
        disabled: The environment has switched tracking off: runs accept everything and keep nothing.
    """

    tracking_uri: str = field(repr=False)
    registry_uri: str | None = field(repr=False)
    experiment_name: str
    working_folder: Path
    tags: Mapping[str, str]
    config_file: Path | None
    record: Recording
    delivery: Delivery
    promote: Promotion | None = None
    alerts: tuple[Alert, ...] = ()
    experiment_id: str | None = None
    disabled: bool = False

    @property
    def masked_uri(self) -> str:
        """The tracking URI without its credentials."""
        return mask_uri(self.tracking_uri)

    @property
    def journal_root(self) -> Path:
        """The folder that holds a folder per run."""
        return Path(self.delivery.journal_root)

    @property
    def store(self) -> StoreAddress:
        """Where runs are delivered, as journals name it."""
        registry = None if self.registry_uri is None else mask_uri(self.registry_uri)
        return StoreAddress(self.masked_uri, str(self.working_folder), registry)


def resolve_settings(
    tracking_uri: str | os.PathLike[str] | None = None,
    experiment_name: str | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    registry_uri: str | os.PathLike[str] | None = None,
    tags: Mapping[str, object] | None = None,
    record: bool | Recording | None = None,
    delivery: Delivery | None = None,
    alerts: Iterable[Alert | Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Resolve a tracker's settings; see `MLflowTracker` for the arguments.

    Raises:
        ConfigError: A value has the wrong type or form, or the config file is absent, unreadable, or holds an
            unknown key; the message names the file, the key and what was expected.
    """
    arguments: dict[str, Any] = {
        "tracking_uri": tracking_uri,
        "experiment_name": experiment_name,
        "registry_uri": registry_uri,
        "tags": tags,
        "record": record,
        "delivery": delivery,
    }
    given = struct_from(_Given, arguments, "argument", _GROUPS)
    config = config or environ.get(CONFIG_VARIABLE, "").strip() or None
    in_file = _read_config(Path(config)) if config is not None else _Given()
    file = f"config file {config}"

    # A worker of Ray Tune has left the folder that the program was started in.
    here = Path(environ.get("TUNE_ORIG_WORKING_DIR") or Path.cwd())
    project = project_root(here)
    uri = _chosen("tracking_uri", TRACKING_URI_VARIABLE, environ, given.tracking_uri, in_file.tracking_uri)
    registry = _chosen("registry_uri", REGISTRY_URI_VARIABLE, environ, given.registry_uri, in_file.registry_uri)
    disabled = any(is_switched_on(variable, environ) for variable in DISABLING_VARIABLES)
    if disabled:  # nothing goes there, so what it needs need not be installed
        uri = registry = None
    name = _chosen("experiment_name", EXPERIMENT_VARIABLE, environ, given.experiment_name, in_file.experiment_name)

    def checked(uri: str, setting: str, variable: str) -> str:
        argument = file if getattr(given, setting) is None else "argument"
        where = variable if environ.get(variable, "").strip() else argument
        try:
            return absolute_uri(check_uri(uri, setting))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}", setting=setting) from error

    resolved_uri = _default_store(project) if uri is None else checked(uri, "tracking_uri", TRACKING_URI_VARIABLE)
    resolved_registry = None if registry is None else checked(registry, "registry_uri", REGISTRY_URI_VARIABLE)
    experiment_id = _chosen_experiment_id(environ, resolved_uri) if name is None else None
    return Settings(
        tracking_uri=resolved_uri,
        registry_uri=None if resolved_registry == resolved_uri else resolved_registry,
        experiment_name=name or (f"(id {experiment_id})" if experiment_id else DEFAULT_EXPERIMENT),
        working_folder=project if uri is None else here,
        tags={key: str(value) for key, value in (given.tags or in_file.tags or {}).items()},
        config_file=None if config is None else Path(os.path.abspath(config)),
        record=_resolve_recording(given.record, in_file.record, environ, file),
        delivery=_resolve_delivery(given.delivery, in_file.delivery, project, environ),
        promote=in_file.promote,
        alerts=alerts_from(alerts, "argument") if alerts is not None else alerts_from(in_file.alerts, file),
        experiment_id=experiment_id,
        disabled=disabled,
    )


def is_switched_on(variable: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether an environment variable holds ``true``, ``1``, ``yes`` or ``on``, in any case."""
    return environ.get(variable, "").strip().lower() in ("true", "1", "yes", "on")


def project_root(start: Path) -> Path:
    """Return the nearest of `start` and its parents that holds ``.git`` or ``pyproject.toml``, else `start`."""
    for folder in (start, *start.parents):
        if (folder / ".git").exists() or (folder / "pyproject.toml").is_file():
            return folder
    return start


# -- from environment, argument, file and default to one value -------------------------------------------------------


def _chosen(name: str, variable: str, environ: Mapping[str, str], *given: Any) -> str | None:
    """Return the value of a setting that an environment variable can override; None where nothing gives it."""
    value = next((str(one) for one in given if one is not None), None)
    override = environ.get(variable, "").strip()  # secrets and .env files often end in a line feed
    if not override:
        return value
    if value is not None and real_uri(value) != real_uri(override):
        show: Callable[[str], str] = mask_uri if name.endswith("uri") else str
        logger.warning("%s=%s from the environment overrides %s=%s", variable, show(override), name, show(value))
    return override


def _chosen_experiment_id(environ: Mapping[str, str], tracking_uri: str) -> str | None:
    """Return the id of the experiment that ``mlflow.start_run`` would use at this store, if one was chosen by id."""
    # ``mlflow.set_experiment`` sets the variable too.
    fluent = sys.modules.get("mlflow.tracking.fluent")
    active = getattr(fluent, "_active_experiment_id", None)  # undocumented (MLflow 3.17.2)
    chosen = active or environ.get(EXPERIMENT_ID_VARIABLE, "").strip() or None
    mlflow = sys.modules.get("mlflow")
    if active is None or mlflow is None:
        return chosen
    there = absolute_uri(mlflow.get_tracking_uri())
    if there == tracking_uri:
        return chosen
    logger.warning(
        "mlflow.set_experiment has chosen an experiment at %s; runs go to %s, where its id means nothing",
        *(mask_uri(there), mask_uri(tracking_uri)),
    )
    return None


def _resolve_recording(
    given: bool | Recording | None, in_file: bool | Recording | None, environ: Any, file: str
) -> Recording:
    # As mlflow.start_run does it: the variable counts where nothing was said.
    sampled = is_switched_on(SYSTEM_METRICS_VARIABLE, environ)
    default = msgspec.structs.replace(_EVERYTHING, system_metrics=sampled)
    groups: list[Recording] = []
    for group in (given, in_file, True):
        if isinstance(group, bool):
            groups.append(default if group else _NOTHING)
            break
        if group is not None:
            groups.append(group)
    chosen = _first_given(groups)
    files = [os.path.abspath(path) for path in chosen.config_files]
    for path in files:
        if not os.path.isfile(path):
            where = file if getattr(given, "config_files", None) is None else "argument"
            raise ConfigError(
                f"{where}: record.config_files: expected files, there is none at {path!r}",
                setting="record.config_files",
            )
    return msgspec.structs.replace(chosen, config_files=tuple(files))


def _resolve_delivery(
    given: Delivery | None, in_file: Delivery | None, project: Path, environ: Mapping[str, str]
) -> Delivery:
    default = msgspec.structs.replace(_DELIVERY, journal_root=str(project / JOURNAL_FOLDER))
    chosen = _first_given([group for group in (given, in_file, default) if group is not None])
    said = None if chosen.journal_root == default.journal_root else chosen.journal_root
    root = _chosen("journal_root", JOURNAL_VARIABLE, environ, said) or default.journal_root
    return msgspec.structs.replace(chosen, journal_root=os.path.abspath(root))


def _first_given(groups: list[Struct]) -> Struct:
    """Return the struct whose every field has the first value that one of `groups` gives it."""
    names = groups[0].__struct_fields__
    values = {
        name: next((found for group in groups if (found := getattr(group, name)) is not None), None) for name in names
    }
    return type(groups[0])(**values)


def _default_store(project: Path) -> str:
    old_store = project / "mlruns"
    if any(old_store.glob("[0-9]*/meta.yaml")):
        logger.warning("%s holds runs of MLflow's file store: new runs go there too, as with MLflow itself", old_store)
        return old_store.as_uri()
    return f"sqlite:///{project / 'mlflow.db'}"


# -- the config file -------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> _Given:
    import yaml  # 15 ms that only users of a config file pay

    where = f"config file {path}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}", setting="config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: expected YAML, got: {error}", setting="config") from error
    if not isinstance(content, (dict, type(None))):
        raise ConfigError(f"{where}: expected keys and values, got {type(content).__name__}", setting="config")
    found = struct_from(_Given, content or {}, where, _GROUPS)
    if found.default_experiment_name is None:
        return found
    if found.experiment_name is not None:
        raise ConfigError(
            f"{where}: 'default_experiment_name' gives experiment_name a second time", setting="experiment_name"
        )
    return msgspec.structs.replace(found, experiment_name=found.default_experiment_name)
