"""Tracking for studies of Optuna.

from tracking_callbacks.integrations.optuna import OptunaCallback

study.optimize(objective, n_trials=100, callbacks=[OptunaCallback()])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.description import framework_tags
from tracking_callbacks._callbacks.searches import Trial, failed_trial, trial_of
from tracking_callbacks._callbacks.training_watch import current_call, watch_method
from tracking_callbacks._contents.documents import document_text
from tracking_callbacks._journal.records import PRUNED_TAG, TRIALS_TAG, Status
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["OptunaCallback"]

# Here, because ``study.optimize(…, callbacks=[OptunaCallback()])`` looks the method up before it makes the callback.
watch_method(Study, "optimize")

_STATUSES: dict[TrialState, Status] = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}


class OptunaCallback:
    """Tracks a study: one run for it, and one nested in that for each of its trials.

    A trial's run has its params, their distributions, its values and intermediate values, and its status: FINISHED,
    KILLED if it was pruned, FAILED with the traceback if its objective raised an exception. (Optuna gives none of
    an exception that ``catch`` names.) If a callback of this package trains within the objective, its run is the
    trial's. The study's run has the best trial so far, the table of all trials, and pictures of its history and of what
    its params contribute. Processes that share a storage share the study's run; they need one journal root, or one
    machine.

    No hook says that a study is over. With ``n_jobs=1`` its run ends with ``study.optimize``, otherwise with the
    program, and goes on with the next trial.

    Args:
        tracker: Where runs go; None means ``MLflowTracker()``.
        tags: Tags of all runs.
    """

    def __init__(self, tracker: MLflowTracker | None = None, *, tags: Mapping[str, Any] | None = None) -> None:
        self._callback_run = CallbackRun(tracker, tags=tags, framework=framework_tags("optuna", optuna.__version__))
        self._studies: dict[str, _TrackedStudy] = {}

    @never_in_the_way
    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Log a trial that has ended; Optuna calls this."""
        known = trial_of(study, trial)
        tracked = self._studies.get(known.study_key)
        if tracked is None:
            tracked = self._studies[known.study_key] = _TrackedStudy(self._callback_run, study, known)
        tracked.log_trial(trial, known)


class _TrackedStudy:
    """A study and its run.

    Args:
        callback_run: Starts the runs.
        study: The study.
        trial: One of its trials, which has ended.
    """

    def __init__(self, callback_run: CallbackRun, study: Study, trial: Trial) -> None:
        self._callback_run = callback_run
        self._study = study
        self._trial = trial
        self._names = _value_names(study)
        run = callback_run.study_run(trial)
        run.log_params(
            {
                "study_name": study.study_name,
                "directions": _directions(study),
                "sampler": type(study.sampler).__name__,
                "pruner": type(study.pruner).__name__,
            }
        )
        run.set_tags(study.user_attrs)

    def log_trial(self, trial: FrozenTrial, known: Trial) -> None:
        """Log a trial that has ended, and what it changes in the study."""
        run, new = self._callback_run.trial_run(known)
        if new:
            run.log_params(trial.params)
        if trial.state is TrialState.COMPLETE:  # a pruned one has its last intermediate value in place of a value
            run.log_metrics(self._by_name(trial.values))
        for step, value in trial.intermediate_values.items():
            run.log_metrics({"intermediate_value": value}, step)
        run.log_dict(_as_document(trial), "config/trial.json")
        run.set_tags({"optuna.state": trial.state.name.lower()} | trial.user_attrs)
        status = _STATUSES.get(trial.state, "FAILED")
        if trial.state is TrialState.PRUNED:
            run.set_tags({PRUNED_TAG: "true"})
        if run.ended and status != "FINISHED":  # a callback in the objective has ended it
            run.reopen()
        run.end(status)
        parent = self._callback_run.study_run(known)
        self._log_progress(parent, trial)
        if (call := current_call()) is not None:
            call.on_end(self._end)
        else:  # a thread of ``n_jobs``
            parent.postpone(self._log_table)

    def _log_progress(self, run: Run, trial: FrozenTrial) -> None:
        """Log a trial's values as points of the study, and the best trial so far where there is one."""
        if trial.state is not TrialState.COMPLETE:
            return
        points = self._by_name(trial.values)
        if len(self._names) == 1:
            best = self._study.best_trial
            points["best_value"] = best.values[0]
            if best.number == trial.number:
                params = {f"best.{name}": value for name, value in best.params.items()}
                run.set_tags({"best_trial": best.number} | params)
        run.log_metrics(points, trial.number)

    @never_in_the_way
    def _end(self, error: BaseException | None) -> None:
        """End the run of the study, and that of the trial whose exception has ended it."""
        failed = None if error is None else failed_trial(error.__traceback__)
        if failed is not None and error is not None:
            run, new = self._callback_run.trial_run(failed)
            if new:
                run.log_params(failed.params)
            if run.ended:
                run.reopen()
            run.fail(error)
        self._callback_run.study_run(self._trial).postpone(None)
        self._log_table()
        self._callback_run.end_study(self._trial, error)

    @never_in_the_way
    def _log_table(self) -> None:
        """Log the table of all trials, and have delivery draw the pictures."""
        run = self._callback_run.study_run(self._trial)
        trials = [_as_document(trial) for trial in self._study.get_trials(deepcopy=False)]
        content = {"study_name": self._study.study_name, "directions": _directions(self._study), "trials": trials}
        run.record("reports", lambda: run.log_dict(content, "study/study.json"))
        run.record("reports", lambda: run.log_table([self._as_row(trial) for trial in trials], "study/trials.json"))
        run.set_tags({TRIALS_TAG: len(trials)})
        run.draw("study", "study", document_text(content, "study.json"))

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._names, values, strict=True))

    def _as_row(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        values = self._by_name(trial["values"] or [None] * len(self._names))
        row: dict[str, Any] = {"number": trial["number"], "state": trial["state"], **values, **trial["params"]}
        return row | {"seconds": trial["seconds"]}


def _value_names(study: Study) -> list[str]:
    """Return the names of the objectives."""
    count = len(study.directions)
    return list(study.metric_names or (["value"] if count == 1 else [f"value_{number}" for number in range(count)]))


def _directions(study: Study) -> list[str]:
    return [direction.name.lower() for direction in study.directions]


def _as_document(trial: FrozenTrial) -> dict[str, Any]:
    took = trial.duration
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(one) for name, one in trial.distributions.items()},
        "intermediate_values": {str(step): value for step, value in trial.intermediate_values.items()},
        "user_attrs": trial.user_attrs,
        "seconds": None if took is None else took.total_seconds(),
    }
