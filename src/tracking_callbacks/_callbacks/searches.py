"""Finds the trial of a search that the user's own code runs around a training run.

That is a study of Optuna, also where rl-baselines3-zoo runs it.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Trial", "current_trial", "failed_trial", "trial_of"]

_KEYS = uuid.UUID("4a4cb2a8-8b0c-4f0e-9d8a-5f2f1a3c6d7e")  # of the names that run keys are derived from
_RUNS_TRIALS = ("optuna.study._optimize", "_run_trial")  # module and function, undocumented (Optuna 5.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a study.

    Attributes:
        study: Name of the study.
        number: Number of the trial in the study.
        params: What the trial has suggested so far, by name.
        began: When it began, in milliseconds since the epoch.
        study_key: `Run.run_key` of the study's run, the same in all processes that work on the study.
    """

    study: str
    number: int
    params: dict[str, Any]
    began: int
    study_key: str

    @property
    def run_key(self) -> str:
        """`Run.run_key` of the trial's run."""
        return uuid.uuid5(_KEYS, f"{self.study_key} {self.number}").hex


def trial_of(study: Any, trial: Any) -> Trial:
    """Return what is known of a trial of Optuna.

    Args:
        study: An ``optuna.Study``.
        trial: A trial of it, running or finished.
    """
    # A study that is made again under the same name begins at another time.
    first: datetime | None = study.get_trials(deepcopy=False)[0].datetime_start
    return Trial(
        study=str(study.study_name),
        number=int(trial.number),
        params=dict(trial.params),
        began=_milliseconds(trial.datetime_start),
        study_key=uuid.uuid5(_KEYS, f"{study.study_name} {first}").hex,
    )


def current_trial() -> Trial | None:
    """Return the trial whose objective has called this function, None outside ``study.optimize``.

    Studies that are asked and told by hand leave nothing to find.
    """
    if "optuna" not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None and not _runs_trial(frame):
        frame = frame.f_back
    return None if frame is None else _trial_in(frame.f_locals)


def failed_trial(trace: TracebackType | None) -> Trial | None:
    """Return the trial that an exception has passed through, None if there is none."""
    while trace is not None and not _runs_trial(trace.tb_frame):
        trace = trace.tb_next
    return None if trace is None else _trial_in(trace.tb_frame.f_locals)


def _runs_trial(frame: FrameType) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) == _RUNS_TRIALS


def _trial_in(variables: Mapping[str, Any]) -> Trial | None:
    study, trial = variables.get("study"), variables.get("trial")
    return None if study is None or trial is None else trial_of(study, trial)


def _milliseconds(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp() * 1000)
