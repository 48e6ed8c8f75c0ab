"""How every callback saves, logs and registers the model that it has trained."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tracking_callbacks._runs.run import Run
from tracking_callbacks._values.names import check_registration, safe_name
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError

__all__ = ["MODEL_ERROR_TAG", "ModelLogger", "PreparedModel", "check_code_paths"]

logger = logging.getLogger(__name__)

MODEL_ERROR_TAG = "tracking_callbacks.model_error"
FILES_FOLDER = "model_files"


def check_code_paths(code_paths: Iterable[str]) -> list[str]:
    """Return `code_paths` as a list.

    Raises:
        ConfigError: It is one text, or names a file or folder that does not exist.
    """
    if isinstance(code_paths, (str, os.PathLike)):
        raise ConfigError(f"code_paths: expected a list of files and folders, got {code_paths!r}", setting="code_paths")
    paths = [str(path) for path in code_paths]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise ConfigError(f"code_paths: there is no file or folder {missing[0]!r}", setting="code_paths")
    return paths


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that is ready to be saved.

    Attributes:
        save: Saves it in an MLflow flavor into the folder it is given, which does not exist yet.
        step: Training step of the model.
        tags: What the callback says about it, on top of the user's tags.
        run_tags: What the run says about it once it is logged.
        save_files: Saves its weights into the folder it is given, for people: it is called where `save` fails.
    """

    save: Callable[[Path], object]
    step: int
    tags: Mapping[str, Any] = field(default_factory=dict)
    run_tags: Mapping[str, Any] = field(default_factory=dict)
    save_files: Callable[[Path], object] | None = None


class ModelLogger:
    """Logs the model of one callback, and registers it where a name was given.

    Args:
        log_model: The callback's argument; False logs no model.
        default: What `log_model` is by default. A model that no argument asks for is part of the automatic recording
            (`Recording.models`).
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        tags: The user's tags of the model and of its version.
        promote: When the version takes over an alias: a Promotion, a mapping of its fields, or None, which means what
            the tracker's config file says.

    Raises:
        ConfigError: The name or an alias is one that MLflow forbids, there are aliases or `promote` without a name, or
            `promote` cannot be used.
        InvalidNameError: The name of a tag is empty or not a text.
    """

    def __init__(
        self,
        log_model: object,
        *,
        default: object,
        registered_model_name: str | None,
        aliases: Iterable[str],
        tags: Mapping[str, Any],
        promote: Promotion | Mapping[str, Any] | None = None,
    ) -> None:
        self.registered_model_name = registered_model_name
        self.aliases = check_registration(registered_model_name, aliases)
        self.promote = Promotion.from_argument(promote)
        if self.promote is not None and registered_model_name is None:
            raise ConfigError(
                f"promote: the alias {self.promote.alias!r} needs a registered_model_name", setting="promote"
            )
        if self.promote is not None and self.promote.alias in self.aliases:
            raise ConfigError(
                f"promote: the alias {self.promote.alias!r} is in aliases too, which move in any case",
                setting="promote",
            )
        self._wanted = log_model is not False
        self._asked_for = log_model != default or registered_model_name is not None
        self._tags = {safe_name(name): text for name, text in tags.items()}
        self._checkpoints: dict[str, dict[int, str]] = {}  # keys by step, by run

    def wanted_by(self, run: Run) -> bool:
        """Return whether the model of `run` will be saved."""
        return self._wanted and (self._asked_for or run.settings.record.models)

    def log(self, run: Run, prepare: Callable[[], PreparedModel], *, register: bool = True) -> None:
        """Save the model and log it to `run`, if it is wanted.

        A failure costs the model alone: it is reported, and the run carries the tag `MODEL_ERROR_TAG`.

        Args:
            run: The run.
            prepare: Decides how the model is saved; not called where none is wanted.
            register: Whether to register it under the name that was given.
        """
        if self.wanted_by(run):
            self._log(run, prepare, register=register)

    @never_in_the_way
    def log_checkpoint(
        self, run: Run, prepare: Callable[[], PreparedModel], *, keep: int | None, best_step: int | None
    ) -> None:
        """Log the model as it is now as one of several; it is not registered.

        Args:
            run: The run.
            prepare: Decides how the model is saved.
            keep: How many of the run's checkpoints stay; the oldest go. None keeps all of them.
            best_step: Step of the best one so far, which stays in any case.
        """
        model = prepare()
        name = f"checkpoint-{model.step}"
        tags = self._tags | dict(model.tags)
        key = run.save_model(model.save, name, step=model.step, tags=tags, checkpoint=True)
        if key is None:
            return
        mine = self._checkpoints.setdefault(run.run_key, {})
        mine[model.step] = key
        while keep is not None and len(mine) > max(keep, 1):
            oldest = next((step for step in mine if step not in (best_step, model.step)), None)
            if oldest is None:
                return
            run.delete_model(mine.pop(oldest))

    @never_in_the_way
    def _log(self, run: Run, prepare: Callable[[], PreparedModel], *, register: bool) -> None:
        name = self.registered_model_name if register else None
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(_tag_error, run))  # the error itself goes on to the guard
            model = prepare()
            stack.push(functools.partial(_keep_files, run, model))
            run.save_model(
                model.save,
                registered_model_name=name,
                aliases=self.aliases if name else (),
                step=model.step,
                tags=self._tags | dict(model.tags),
                promote=self.promote if name else None,
            )
            run.set_tags(model.run_tags)


def _tag_error(
    run: Run, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
) -> None:
    if kind is not None:
        run.set_tags({MODEL_ERROR_TAG: f"{kind.__name__}: {error}"})


def _keep_files(
    run: Run,
    model: PreparedModel,
    kind: type[BaseException] | None,
    error: BaseException | None,
    _: TracebackType | None,
) -> None:
    """Log the weights of a model that could not be saved in a flavor: they may exist nowhere else."""
    if kind is not None and issubclass(kind, Exception) and model.save_files is not None:
        run.log_file(FILES_FOLDER, model.save_files)
        logger.warning("MLflow cannot load the model (%s); its weights are in the artifacts %s", error, FILES_FOLDER)
