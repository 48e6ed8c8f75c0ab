"""MLflowTracker: where runs go, and how they are started."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tracking_callbacks._contents.entry_point import origin_tags
from tracking_callbacks._journal.confined import is_key
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.owner import current_owner
from tracking_callbacks._journal.records import AlertRule, Intent, SessionOpened
from tracking_callbacks._runs.run import Run, active_runs
from tracking_callbacks._values.alerts import Alert
from tracking_callbacks._values.conversion import MAX_TAG_LENGTH, cut_text, entry_text
from tracking_callbacks._values.names import safe_name
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._values.store_uri import absolute_uri
from tracking_callbacks._writing.launch import launcher_for
from tracking_callbacks._writing.node import node_name
from tracking_callbacks._writing.session import writable_root
from tracking_callbacks.errors import InputError
from tracking_callbacks.settings import DISABLING_VARIABLES, Delivery, Recording, Settings, resolve_settings

__all__ = ["MLflowTracker"]

logger = logging.getLogger(__name__)

TAGS_VARIABLE = "MLFLOW_TAGS"
RUN_NAME_VARIABLE = "MLFLOW_RUN_NAME"

_NODE_SECONDS = 5.0


class MLflowTracker:
    """Starts runs on one MLflow store; building it does no I/O apart from reading the config file.

    Args:
        tracking_uri: The MLflow store: ``http(s)://…``, ``sqlite:///…``, another database, or a folder. The variable
            ``MLFLOW_TRACKING_URI`` takes precedence. Without either, and without one in `config`, it is MLflow's own
            local default at the project root (the nearest parent folder with ``.git`` or ``pyproject.toml``).
        experiment_name: Experiment of new runs, created where it does not exist; ``MLFLOW_EXPERIMENT_NAME`` takes
            precedence. Without either, and without one in `config`, it is the one that ``mlflow.set_experiment`` or
            ``MLFLOW_EXPERIMENT_ID`` has chosen, as in ``mlflow.start_run``.
        config: Path of a YAML file with these arguments by name, `record` and `delivery` as mappings;
            ``default_experiment_name`` is the experiment. An argument takes precedence over the file, field by field.
            None means the file that ``TRACKING_CALLBACKS_CONFIG`` names, if it is set.
        registry_uri: The model registry, where it is not the store's own; ``MLFLOW_REGISTRY_URI`` takes precedence.
        tags: Tags of every run: ``dataset_version``, ``status``, …
        record: What a run records automatically. True means everything that `Recording` has on by default. False
            means params and metrics alone, what is logged explicitly, and a model only if a callback was given a name
            to register it under, or another `log_model` than its default.
        delivery: How runs reach the store: the journal's folder, offline, time limits.
        alerts: What to be told of, and how: ``Alert("train/loss is nan", notify="$SLACK_WEBHOOK_URL")``.

    Raises:
        ConfigError: A value has the wrong type or form; the message names it and what was expected.
    """

    def __init__(
        self,
        tracking_uri: str | os.PathLike[str] | None = None,
        experiment_name: str | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        registry_uri: str | os.PathLike[str] | None = None,
        tags: Mapping[str, object] | None = None,
        record: bool | Recording | None = None,
        delivery: Delivery | None = None,
        alerts: Iterable[Alert | Mapping[str, Any]] | None = None,
    ) -> None:
        self.settings: Settings = resolve_settings(
            tracking_uri,
            experiment_name,
            config=config,
            registry_uri=registry_uri,
            tags=tags,
            record=record,
            delivery=delivery,
            alerts=alerts,
        )

    @classmethod
    def of(cls, run: Run) -> MLflowTracker:
        """Return a tracker on the store and experiment of `run`, with all settings that it was started with."""
        return cls._with(run.settings)

    def at(self, tracking_uri: str, *, experiment_id: str | None = None) -> MLflowTracker:
        """Return a tracker with all settings of this one but the store, whatever the environment says of that.

        Args:
            tracking_uri: The store.
            experiment_id: The store's id of the experiment of new runs; None means the experiment of this tracker's
                name.
        """
        return self._with(
            dataclasses.replace(
                self.settings,
                tracking_uri=absolute_uri(tracking_uri),
                working_folder=Path.cwd(),
                experiment_id=experiment_id,
            )
        )

    @classmethod
    def _with(cls, settings: Settings) -> MLflowTracker:
        tracker = cls.__new__(cls)
        tracker.settings = settings
        return tracker

    def start_run(
        self,
        run_name: str | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        parent: Run | str | None = None,
        run_id: str | None = None,
        run_key: str | None = None,
        start_time: int | None = None,
    ) -> Run:
        """Start a run, or continue the one that the server knows as `run_id`.

        Use it in a ``with`` statement, which ends the run with the status that is true, or call `Run.end`. A run that
        is never ended is KILLED (FAILED after an uncaught exception) when the interpreter exits.

        Args:
            run_name: Shown in the UI. None means ``MLFLOW_RUN_NAME``, and without that MLflow makes one up.
            tags: Tags of this run, over the tracker's.
            parent: The run, or the id of the run, that this one is nested under.
            run_id: Continue this run instead of making one.
            run_key: Its `Run.run_key`, which is otherwise made up: processes that give the same key write to one run,
                for example the workers of a search. Letters, digits and ``_.-``, 128 of them at most.
            start_time: When it began, in milliseconds since the epoch; None means now.

        Raises:
            InputError: `parent`, `run_id` or `run_key` has the wrong type, or both of the first two are given.
        """
        if run_key is not None:
            _check_run_key(run_key)
        if run_id is not None and parent is not None:
            raise InputError("start_run: expected run_id or parent, got both; a run keeps the parent it began with")
        return self._open(
            run_name=run_name, tags=tags, parent=parent, run_id=run_id, run_key=run_key, start_time=start_time
        )

    def start_nested(
        self,
        run_name: str | None = None,
        *,
        parent_key: str,
        tags: Mapping[str, Any] | None = None,
        run_key: str | None = None,
        start_time: int | None = None,
    ) -> Run:
        """Start a run nested under one that another process has started, which need not be in the store yet.

        Args:
            run_name: As in `start_run`, and so are `tags`, `run_key` and `start_time`.
            parent_key: `Run.run_key` of the other run.
            tags: Tags of this run, over the tracker's.
            run_key: Its key, which is otherwise made up.
            start_time: When it began.

        Raises:
            InputError: A key cannot be the key of a run.
        """
        for key in filter(None, (parent_key, run_key)):
            _check_run_key(key)
        return self._open(run_name=run_name, tags=tags, parent_key=parent_key, run_key=run_key, start_time=start_time)

    def join_run(self, run_id: str) -> Run:
        """Log to a run that another program has started and will end.

        Args:
            run_id: The server's id of the run.
        """
        return self._open(run_id=run_id, intent="join")

    def resume_run(self, run_key: str, *, at_step: int | None = None) -> Run:
        """Continue a run of an earlier process, known by its `Run.run_key`, and make it RUNNING again.

        Args:
            run_key: Key of the run.
            at_step: Training step that it continues from. If the run has later points, because the earlier process
                trained on after its last checkpoint, the tag ``tracking_callbacks.resumed_at_step`` names this step.

        Raises:
            InputError: `run_key` cannot be the key of a run.
        """
        _check_run_key(run_key)
        return self._open(run_key=run_key, resumed=True, resumed_at=at_step)

    def join_node(self, run_key: str | None = None, *, run_id: str | None = None) -> Run:
        """Record the system metrics of this machine in a run that a process on another machine writes.

        Call it in one process of each further machine. The metrics are ``system/node_1/…``, with the number that the
        launcher gives the machine, else its host name, or what ``MLFLOW_SYSTEM_METRICS_NODE_ID`` says. They end with
        the returned run's `Run.end`, or with this process, and neither changes the run's status.

        Args:
            run_key: `Run.run_key` of the run, which need not be in the store yet.
            run_id: The server's id of the run, where another program has started it.

        Raises:
            InputError: A key or an id cannot be that of a run, or there is none or both.
        """
        if (run_key is None) == (run_id is None):
            raise InputError("join_node: expected either run_key or run_id")
        if run_key is not None:
            _check_run_key(run_key)
        settings = self.settings
        # Where this machine does not reach the store, its processes do not wait long for these few samples.
        patience = min(settings.delivery.flush_timeout, _NODE_SECONDS)
        lean = dataclasses.replace(
            settings,
            record=Recording.only(system_metrics=True),
            delivery=msgspec.structs.replace(settings.delivery, flush_timeout=patience, wait_at_end=patience),
        )
        node = node_name() or current_owner().host
        return self._with(lean)._open(run_id=run_id, parent_key=run_key, intent="join", resumed=True, node=node)

    @property
    def active_run(self) -> Run | None:
        """The innermost run of this tracker whose ``with`` block is being executed."""
        own = [run for run in active_runs.get() if run.settings == self.settings]
        return own[-1] if own else None

    def _open(
        self,
        *,
        run_key: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | str | None = None,
        parent_key: str | None = None,
        run_id: str | None = None,
        intent: Intent = "own",
        resumed: bool = False,
        resumed_at: int | None = None,
        start_time: int | None = None,
        node: str = "",
    ) -> Run:
        if run_id is not None and (not isinstance(run_id, str) or not run_id.strip()):
            raise InputError(f"run_id: expected the id of a run, got {run_id!r}")
        if not isinstance(parent, (Run, str, type(None))):
            raise InputError(f"parent: expected a Run or the id of one, got {parent!r} ({type(parent).__name__})")
        settings = self.settings
        known = resumed or run_id is not None
        if run_name is None and not known:
            run_name = os.environ.get(RUN_NAME_VARIABLE, "").strip() or None
        given = {} if known else origin_tags() | _environment_tags() | dict(settings.tags)
        given |= tags or {}
        now = time.time_ns()
        lineage: dict[str, str | None] = {"parent_key": parent_key, "parent_id": None}
        if parent is not None:
            lineage |= parent.parent_reference if isinstance(parent, Run) else {"parent_id": parent}
        opened = SessionOpened(
            run_key=run_key or uuid.uuid4().hex,
            session=now,
            timestamp=now // 1_000_000 if start_time is None else start_time,
            owner=current_owner(),
            store=settings.store,
            experiment=settings.experiment_name,
            intent=intent,
            run_id=run_id,
            run_name=None if run_name is None else mask_text(str(run_name)),
            tags={safe_name(key): cut_text(entry_text(key, value), MAX_TAG_LENGTH) for key, value in given.items()},
            resumed=known,
            system_metrics=settings.record.system_metrics and (intent == "own" or bool(node)),
            resumed_at=resumed_at,
            experiment_id=settings.experiment_id,
            alerts=tuple(AlertRule(one.when, one.channels) for one in settings.alerts) if intent == "own" else (),
            node=node or node_name(),
            **lineage,
        )
        if settings.disabled:
            _say_disabled()
            return Run(settings, JournalRoot(settings.journal_root), None, opened=opened)
        root = writable_root(settings.journal_root)
        launcher = None if settings.delivery.offline else launcher_for(settings, root.path)
        return Run(settings, root, launcher, opened=opened)

    def __repr__(self) -> str:
        return f"MLflowTracker({self.settings.masked_uri!r}, {self.settings.experiment_name!r})"


def _check_run_key(run_key: object) -> None:
    if not isinstance(run_key, str) or not is_key(run_key):
        raise InputError(f"run_key: expected the key of a run, got {run_key!r}")


def _environment_tags() -> dict[str, str]:
    """Return the tags of ``MLFLOW_TAGS``, a JSON object, which transformers' own callback honours too."""
    text = os.environ.get(TAGS_VARIABLE, "").strip()
    if not text:
        return {}
    try:
        tags = json.loads(text)
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict):
        _warn_of_tags(text)
        return {}
    return {key: str(value) for key, value in tags.items() if key.strip()}


@functools.cache
def _say_disabled() -> None:
    logger.info("tracking is switched off by %s: nothing is recorded", " or ".join(DISABLING_VARIABLES))


@functools.cache
def _warn_of_tags(text: str) -> None:
    logger.warning("%s: expected a JSON object, got %r; it is ignored", TAGS_VARIABLE, mask_text(text))
