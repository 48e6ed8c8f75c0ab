"""MLflowTracker: where runs go, and how they are started."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from tracking_callbacks.context.origin import origin_tags
from tracking_callbacks.errors import ConfigError, InputError
from tracking_callbacks.launch import launcher_for
from tracking_callbacks.masking import mask_text
from tracking_callbacks.owner import current_owner
from tracking_callbacks.records import Intent, SessionOpened, Store
from tracking_callbacks.run import Run, entered_runs
from tracking_callbacks.session import writable_root
from tracking_callbacks.settings import Settings, resolve_settings
from tracking_callbacks.values import MAX_TAG_LENGTH, cut_text, entry_text, safe_name

__all__ = ["MLflowTracker"]

logger = logging.getLogger("tracking_callbacks")

TAGS_VARIABLE = "MLFLOW_TAGS"


class MLflowTracker:
    """Starts runs on one MLflow store; building it does no I/O but reading the config file.

    Args:
        tracking_uri: The MLflow store: ``http(s)://…``, ``sqlite:///…``, another database, or a folder. The variable
            ``MLFLOW_TRACKING_URI`` goes before it; without either, and without one in `config`, it is MLflow's own
            local default at the project root (the nearest parent folder with ``.git`` or ``pyproject.toml``).
        experiment_name: Experiment of new runs, made where it does not exist; ``MLFLOW_EXPERIMENT_NAME`` goes before
            it.
        config: Path of a YAML file with these arguments by name; ``default_experiment_name`` is the experiment.
        journal_root: Folder that keeps what is not delivered yet; ``TRACKING_CALLBACKS_JOURNAL`` goes before it.
        offline: Keep everything in the journal until ``tracking-callbacks sync``.
        flush_timeout: Seconds that `Run.flush` and the interpreter's exit wait for delivery at most (default 60).
        delivery_grace: Seconds that delivery goes on trying after this process has ended (default 600).
        max_staged_bytes: Bytes that a run's checkpoints may take on the disk while they wait for delivery; beyond it
            the oldest are dropped (`Run.log_checkpoint`). By default half of the room that the disk has for them.
        tags: Tags of every run: ``dataset_version``, ``status``, …
        config_files: Settings files that runs are made from, logged under ``config/files/`` with secrets masked, as
            the file `config` is.
        log_everything: Record what makes a run complete without being asked (see below); with False a run holds
            params and metrics, and what is logged explicitly; a model only if a callback was given a name to register
            it under, or another `log_model` than its default. The switches below go before it, each for its piece.
        log_config: Command line, resolved settings and config files, under ``config/``.
        log_source: Git commit, branch, remote and dirty flag as tags; the uncommitted changes and the entry script
            under ``source/``.
        log_environment: Python, platform, hardware and installed versions, under ``environment/``.
        log_logs: What passes through `logging`, under ``logs/``.
        log_figures: Pictures of the run, under ``figures/`` and beside an evaluation's report.
        log_system_metrics: Sample CPU, memory, disk, network and GPUs as MLflow's ``system/…`` metrics; by default as
            ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says. Needs psutil, GPUs nvidia-ml-py.
        log_datasets: The datasets that a callback's training is given, as inputs of the run.
        log_sample_rows: Twenty rows of each of them, as tables under ``data/``; not unless it is asked for, for data
            may be private.

    Raises:
        ConfigError: A value has the wrong type or form; the message names it and what was expected.
    """

    def __init__(
        self,
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
    ) -> None:
        self.settings: Settings = resolve_settings(
            tracking_uri,
            experiment_name,
            config=config,
            journal_root=journal_root,
            offline=offline,
            flush_timeout=flush_timeout,
            delivery_grace=delivery_grace,
            max_staged_bytes=max_staged_bytes,
            tags=tags,
            config_files=config_files,
            log_everything=log_everything,
            log_config=log_config,
            log_source=log_source,
            log_environment=log_environment,
            log_logs=log_logs,
            log_figures=log_figures,
            log_system_metrics=log_system_metrics,
            log_datasets=log_datasets,
            log_sample_rows=log_sample_rows,
        )

    @classmethod
    def of(cls, run: Run) -> MLflowTracker:
        """Return a tracker on the store and experiment of `run`, with the settings that it was started with."""
        tracker = cls.__new__(cls)
        tracker.settings = run.settings
        return tracker

    def start_run(
        self,
        run_name: str | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        parent: Run | str | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Start a run, or continue the one that the server knows as `run_id`.

        Use it in a ``with`` statement, which ends the run with the status that is true, or call `Run.end`. A run that
        nobody ends is KILLED (FAILED after an uncaught exception) when the interpreter exits.

        Args:
            run_name: Shown in the UI; without one MLflow makes one up.
            tags: Tags of this run, over the tracker's.
            parent: The run, or the id of the run, that this one is nested under.
            run_id: Continue this run instead of making one.

        Raises:
            InputError: `parent` or `run_id` has the wrong type, or both are given.
        """
        if run_id is not None and parent is not None:
            raise InputError("start_run: expected run_id or parent, got both; a run keeps the parent it began with")
        return self._open(run_name=run_name, tags=tags, parent=parent, run_id=run_id)

    def join_run(self, run_id: str) -> Run:
        """Log to a run that somebody else has started and will end.

        Args:
            run_id: The server's id of the run.
        """
        return self._open(run_id=run_id, intent="join")

    def resume_run(self, run_key: str) -> Run:
        """Continue a run of an earlier process, known by its `Run.run_key`, and make it RUNNING again."""
        return self._open(run_key=run_key, resumed=True)

    @property
    def active_run(self) -> Run | None:
        """The innermost run of this tracker whose ``with`` block is being executed."""
        own = [run for run in entered_runs.get() if run.settings == self.settings]
        return own[-1] if own else None

    def _open(
        self,
        *,
        run_key: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | str | None = None,
        run_id: str | None = None,
        intent: Intent = "own",
        resumed: bool = False,
    ) -> Run:
        if run_id is not None and (not isinstance(run_id, str) or not run_id.strip()):
            raise InputError(f"run_id: expected the id of a run, got {run_id!r}")
        if not isinstance(parent, (Run, str, type(None))):
            raise InputError(f"parent: expected a Run or the id of one, got {parent!r} ({type(parent).__name__})")
        settings = self.settings
        known = resumed or run_id is not None
        given = {} if known else origin_tags() | _environment_tags() | dict(settings.tags)
        given |= tags or {}
        now = time.time_ns()
        lineage = parent.parent_reference if isinstance(parent, Run) else {"parent_key": None, "parent_id": parent}
        opened = SessionOpened(
            run_key=run_key or uuid.uuid4().hex,
            session=now,
            timestamp=now // 1_000_000,
            owner=current_owner(),
            store=Store(settings.shown_uri, str(settings.working_folder)),
            experiment=settings.experiment_name,
            intent=intent,
            run_id=run_id,
            run_name=mask_text(run_name) if isinstance(run_name, str) else run_name,
            tags={safe_name(key): cut_text(entry_text(key, value), MAX_TAG_LENGTH) for key, value in given.items()},
            resumed=known,
            system_metrics=settings.log_system_metrics and intent == "own",
            **lineage,
        )
        root = writable_root(settings.journal_root)
        launcher = None if settings.offline else launcher_for(settings, root.path)
        return Run(settings, root, launcher, opened=opened)

    def __repr__(self) -> str:
        return f"MLflowTracker({self.settings.shown_uri!r}, {self.settings.experiment_name!r})"


def _environment_tags() -> dict[str, str]:
    """Return the tags of ``MLFLOW_TAGS``, a JSON object, which transformers' own callback honours too."""
    text = os.environ.get(TAGS_VARIABLE)
    if not text:
        return {}
    try:
        tags = json.loads(text)
    except json.JSONDecodeError:
        tags = None
    if not isinstance(tags, dict):
        raise ConfigError(f"{TAGS_VARIABLE}: expected a JSON object, got {mask_text(text)!r}", setting=TAGS_VARIABLE)
    return {str(key): str(value) for key, value in tags.items()}
