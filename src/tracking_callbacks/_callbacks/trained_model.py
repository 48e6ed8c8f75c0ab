"""How every callback saves, logs and registers the model that it has trained."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tracking_callbacks._runs.run import Run
from tracking_callbacks._values.names import check_registration, safe_name
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError

__all__ = ["MODEL_ERROR_TAG", "ModelLogger", "PreparedModel", "check_code_paths"]

MODEL_ERROR_TAG = "tracking_callbacks.model_error"


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
    """

    save: Callable[[Path], object]
    step: int
    tags: Mapping[str, Any] = field(default_factory=dict)
    run_tags: Mapping[str, Any] = field(default_factory=dict)


class ModelLogger:
    """Logs the model of one callback, and registers it where a name was given.

    Args:
        log_model: The callback's argument; False logs no model.
        default: What `log_model` is by default. A model that no argument asks for is part of the automatic recording
            (`Recording.models`).
        registered_model_name: Name in the model registry; None registers nothing.
        aliases: Aliases that the registered version takes over.
        tags: The user's tags of the model and of its version.

    Raises:
        ConfigError: The name or an alias is one that MLflow forbids, or there are aliases without a name.
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
    ) -> None:
        self.registered_model_name = registered_model_name
        self.aliases = check_registration(registered_model_name, aliases)
        self._wanted = log_model is not False
        self._asked_for = log_model != default or registered_model_name is not None
        self._tags = {safe_name(name): text for name, text in tags.items()}

    def log(self, run: Run, prepare: Callable[[], PreparedModel], *, register: bool = True) -> None:
        """Save the model and log it to `run`, if it is wanted.

        A failure costs the model alone: it is reported, and the run carries the tag `MODEL_ERROR_TAG`.

        Args:
            run: The run.
            prepare: Decides how the model is saved; not called where none is wanted.
            register: Whether to register it under the name that was given.
        """
        if self._wanted and self._asked_for:
            self._log(run, prepare, register=register)
        elif self._wanted:
            run.record("models", lambda: self._log(run, prepare, register=register))

    @never_in_the_way
    def _log(self, run: Run, prepare: Callable[[], PreparedModel], *, register: bool) -> None:
        name = self.registered_model_name if register else None
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(_tag_error, run))  # the error itself goes on to the guard
            model = prepare()
            run.save_model(
                model.save,
                registered_model_name=name,
                aliases=self.aliases if name else (),
                step=model.step,
                tags=self._tags | dict(model.tags),
            )
            run.set_tags(model.run_tags)


def _tag_error(
    run: Run, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
) -> None:
    if kind is not None:
        run.set_tags({MODEL_ERROR_TAG: f"{kind.__name__}: {error}"})
