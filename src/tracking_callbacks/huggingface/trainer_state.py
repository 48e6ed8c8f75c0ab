"""What a ``Trainer``'s state and arguments say: its run, where its checkpoints are, which step the model is of."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any, cast

from transformers import TrainerState, TrainingArguments

from tracking_callbacks._callbacks.callback_run import run_key_from, run_reference
from tracking_callbacks._runs.run import Run
from tracking_callbacks.settings import Settings

__all__ = ["latest_checkpoint", "model_step", "noted_run_key", "write_run_reference"]

_STATE_KEY = "tracking_callbacks"  # in TrainerState.stateful_callbacks, and so in every checkpoint


def write_run_reference(state: TrainerState, run: Run) -> None:
    """Note in the trainer's state, and so in every checkpoint, which run this is."""
    _checkpoint_state(state)[_STATE_KEY] = run_reference(run)


def noted_run_key(state: TrainerState, settings: Settings) -> str | None:
    """Return the key of the run that the trainer's checkpoint belongs to, None if it cannot be continued."""
    return run_key_from(_checkpoint_state(state).get(_STATE_KEY), settings, owner="the checkpoint")


def latest_checkpoint(args: TrainingArguments, state: TrainerState) -> Path | None:
    """Return the checkpoint of this step, or None where ``save_total_limit`` has deleted it already."""
    name = f"checkpoint-{state.global_step}"
    # A search gives each trial a folder: ``run-<number>``, or the name that the user's ``hp_name`` returns.
    trial = glob.escape(state.trial_name) if state.trial_name else "run-*"
    pattern = f"{trial}/{name}" if state.is_hyper_param_search else name
    found = [folder for folder in Path(args.output_dir or ".").glob(pattern) if folder.is_dir()]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def model_step(args: TrainingArguments, state: TrainerState) -> int:
    """Return the step that the model at the end of training is of: the best one's if that has been loaded."""
    best = state.best_global_step if args.load_best_model_at_end else None
    return best or state.global_step


def _checkpoint_state(state: TrainerState) -> dict[str, Any]:
    """Return what checkpoints carry for callbacks: a plain dict in transformers 5.23, whatever the annotation says."""
    return cast(dict[str, Any], state.stateful_callbacks)
