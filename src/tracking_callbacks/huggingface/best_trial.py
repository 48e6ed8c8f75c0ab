"""What ``Trainer.hyperparameter_search`` has found."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import BestRun

from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["log_best_trial"]


@never_in_the_way
def log_best_trial(run: Run, found: Any) -> None:
    """Log the best trial of a search, under the names that `OptunaCallback` uses for a study.

    Args:
        run: The run of the search.
        found: What the search has returned: one trial, the trials of a Pareto front if there are several objectives,
            or None after an exception.
    """
    if isinstance(found, BestRun):
        params = {f"best.{name}": value for name, value in found.hyperparameters.items()}
        run.set_tags({"best_trial": found.run_id} | params)
        run.log_metrics({"best_value": found.objective})
    elif found:
        run.set_tags({"best_trials": ", ".join(trial.run_id for trial in found)})
