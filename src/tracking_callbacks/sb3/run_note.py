"""Which run a model belongs to: noted on the model itself, so that a saved model carries the note along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from tracking_callbacks._callbacks.callback_run import run_key_from, run_reference
from tracking_callbacks._runs.run import Run
from tracking_callbacks.settings import Settings

__all__ = ["note_progress", "note_run", "noted_progress", "noted_run_key"]

# SB3 saves every attribute of a model that can be pickled, and sets it again on load.
_ATTRIBUTE = "_tracking_callbacks"


def note_run(model: BaseAlgorithm, run: Run) -> None:
    """Note on `model` that `run` is its run; a joined run is not noted, because its owner names it each time."""
    if run.joined:
        model.__dict__.pop(_ATTRIBUTE, None)
        return
    noted = _noted(model)
    progress = noted.get("progress", {}) if noted.get("run_key") == run.run_key else {}
    setattr(model, _ATTRIBUTE, run_reference(run) | {"progress": progress})


def note_progress(model: BaseAlgorithm, progress: Mapping[str, float]) -> None:
    """Note on `model` how far the episodes of its run have come, as plain numbers by name."""
    noted = _noted(model)
    if noted:
        noted["progress"] = dict(progress)


def noted_progress(model: BaseAlgorithm, run: Run) -> Mapping[str, Any]:
    """Return the last note on `model` about the episodes of `run`, empty if there is none."""
    noted = _noted(model)
    progress = noted.get("progress") if noted.get("run_key") == run.run_key else None
    return progress if isinstance(progress, Mapping) else {}


def noted_run_key(model: BaseAlgorithm, settings: Settings) -> str | None:
    """Return the key of the run that `model` belongs to, None if the store of `settings` has no such run."""
    return run_key_from(_noted(model), settings, owner="the model")


def _noted(model: BaseAlgorithm) -> dict[str, Any]:
    noted = getattr(model, _ATTRIBUTE, None)
    return noted if isinstance(noted, dict) else {}
