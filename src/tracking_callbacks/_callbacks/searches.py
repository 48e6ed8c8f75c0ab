"""Finds the trial of a search that the user's own code runs around a training run.

That is a study of Optuna, also where rl-baselines3-zoo runs it, or an experiment of Ray Tune.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

from tracking_callbacks._writing.supervisor import RAY_WORKER_VARIABLE

__all__ = ["Trial", "current_trial", "experiment_trial", "failed_trial", "trial_of"]

_KEYS = uuid.UUID("4a4cb2a8-8b0c-4f0e-9d8a-5f2f1a3c6d7e")  # of the names that run keys are derived from
_RUNS_TRIALS = ("optuna.study._optimize", "_run_trial")  # module and function, undocumented (Optuna 5.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a study of Optuna, or of an experiment of Ray Tune.

    Attributes:
        study: What the run of the study is called.
        name: What the trial's run is called.
        number: Number of the trial in the study.
        params: What the trial has suggested so far, by name.
        began: When it began, in milliseconds since the epoch.
        study_key: `Run.run_key` of the study's run, the same in all processes that work on the study.
        is_remote: Another process has the study's run.
        known_as: What the framework knows the trial by, if that is not `name`.
    """

    study: str
    name: str
    number: int
    params: dict[str, Any]
    began: int
    study_key: str
    is_remote: bool = False
    known_as: str = ""

    @property
    def run_key(self) -> str:
        """`Run.run_key` of the trial's run."""
        return _key(self.study_key, self.known_as or self.name)


def trial_of(study: Any, trial: Any) -> Trial:
    """Return what is known of a trial of Optuna.

    Args:
        study: An ``optuna.Study``.
        trial: A trial of it, running or finished.
    """
    # A study that is made again under the same name begins at another time.
    first: datetime | None = study.get_trials(deepcopy=False)[0].datetime_start
    unnamed = study.study_name.startswith("no-name-")  # what Optuna calls a study without a name
    return Trial(
        study="study" if unnamed else f"study {study.study_name}",
        name=f"trial {trial.number}",
        number=int(trial.number),
        params=dict(trial.params),
        began=_milliseconds(trial.datetime_start),
        study_key=_key(study.study_name, str(first)),
    )


def experiment_trial(experiment: str, trial_id: str, name: str, *, is_remote: bool = False) -> Trial:
    """Return what is known of a trial of Ray Tune.

    Args:
        experiment: Name of the experiment's folder.
        trial_id: Id of the trial, which ends in its number: ``3f2a1_00007``.
        name: Ray's name of the trial, or the user's.
        is_remote: This process is not the experiment's driver.
    """
    _, counted, ending = trial_id.rpartition("_")
    number = int(ending) if counted and ending.isdecimal() else None
    function = name.removesuffix(f"_{trial_id}")
    by_ray = function != name and function.isidentifier()
    return Trial(
        study=experiment,
        # MLflow's table of runs cuts Ray's names, train_3f2a1_00007, before the place where they differ.
        name=name if number is None or not by_ray else f"trial {number}",
        number=number or 0,
        params={},
        began=0,
        study_key=_key("ray tune", experiment),
        is_remote=is_remote,
        known_as=name,
    )


def current_trial() -> Trial | None:
    """Return the trial whose objective, or whose worker of Ray, has called this function; None outside of both.

    Studies that are asked and told by hand leave nothing to find.
    """
    if (trial := _ray_trial()) is not None or "optuna" not in sys.modules:
        return trial
    frame: FrameType | None = sys._getframe()
    while frame is not None and not _runs_trial(frame):
        frame = frame.f_back
    return None if frame is None else _trial_in(frame.f_locals)


def failed_trial(trace: TracebackType | None) -> Trial | None:
    """Return the trial that an exception has passed through, None if there is none."""
    while trace is not None and not _runs_trial(trace.tb_frame):
        trace = trace.tb_next
    return None if trace is None else _trial_in(trace.tb_frame.f_locals)


def _ray_trial() -> Trial | None:
    tune = sys.modules.get("ray.tune")
    if tune is None or not os.environ.get(RAY_WORKER_VARIABLE):
        return None
    context = tune.get_context()
    trial_id, experiment = context.get_trial_id(), context.get_experiment_name()
    if not trial_id or not experiment:
        return None
    return experiment_trial(experiment, trial_id, context.get_trial_name(), is_remote=True)


def _key(*parts: str) -> str:
    return uuid.uuid5(_KEYS, " ".join(parts)).hex


def _runs_trial(frame: FrameType) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) == _RUNS_TRIALS


def _trial_in(variables: Mapping[str, Any]) -> Trial | None:
    study, trial = variables.get("study"), variables.get("trial")
    return None if study is None or trial is None else trial_of(study, trial)


def _milliseconds(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp() * 1000)
