"""Finds the trial of a search that the user's own code runs around a training run.

That is a study of Optuna, also where rl-baselines3-zoo runs it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Trial", "current_trial"]

_RUNS_TRIALS = ("optuna.study._optimize", "_run_trial")  # module and function, undocumented (Optuna 5.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a study.

    Attributes:
        study: Name of the study.
        number: Number of the trial in the study.
        params: What the trial has suggested so far, by name.
        began: When it began, in milliseconds since the epoch.
    """

    study: str
    number: int
    params: dict[str, Any]
    began: int


def current_trial() -> Trial | None:
    """Return the trial whose objective has called this function, None outside ``study.optimize``.

    Studies that are asked and told by hand leave nothing to find.
    """
    if "optuna" not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == _RUNS_TRIALS:
            trial = frame.f_locals.get("trial")
            study = frame.f_locals.get("study")
            if trial is None or study is None:
                return None
            began = trial.datetime_start
            return Trial(
                study=str(study.study_name),
                number=int(trial.number),
                params=dict(trial.params),
                began=0 if began is None else int(began.timestamp() * 1000),
            )
        frame = frame.f_back
    return None
