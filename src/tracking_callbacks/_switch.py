"""Tracks every ``Trainer`` of a program that cannot be changed, where ``TRACKING_CALLBACKS_TRAINER`` is switched on.

The wheel brings a ``.pth`` file that imports this module when an interpreter starts with that variable.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tracking_callbacks.settings import is_switched_on

__all__ = ["VARIABLE", "install"]

logger = logging.getLogger(__name__)

VARIABLE = "TRACKING_CALLBACKS_TRAINER"
_TRAINER_MODULE = "transformers.trainer"


class _TrainerFinder(MetaPathFinder):
    """Adds our callback to transformers' default ones as soon as the program has imported ``Trainer``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != _TRAINER_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _add_callback(module)

            loader.exec_module = exec_module
        return spec


def _add_callback(trainer_module: Any) -> None:
    try:
        from tracking_callbacks.huggingface import MLflowTrainerCallback

        trainer_module.DEFAULT_CALLBACKS.append(MLflowTrainerCallback)
    except Exception:
        logger.warning("%s is switched on, but Trainer cannot be tracked", VARIABLE, exc_info=True)


def install() -> None:
    """Wait for the import of ``Trainer``, if the environment asks for it."""
    if is_switched_on(VARIABLE):
        sys.meta_path.insert(0, _TrainerFinder())


install()
