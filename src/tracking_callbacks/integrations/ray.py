"""Tracking for experiments of Ray Tune.

from tracking_callbacks.integrations.ray import TuneCallback

tune.Tuner(train, run_config=tune.RunConfig(callbacks=[TuneCallback()]), …).fit()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.result import AUTO_RESULT_KEYS, DEBUG_METRICS, DEFAULT_EXPERIMENT_INFO_KEYS, DONE, TIME_TOTAL_S

from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.description import framework_tags
from tracking_callbacks._callbacks.searches import Trial, experiment_trial
from tracking_callbacks._journal.pending import pending_runs
from tracking_callbacks._journal.records import TRIALS_TAG
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.conversion import flatten, to_scalar
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks._writing.launch import start_sync
from tracking_callbacks.errors import MetricValueError

__all__ = ["TuneCallback"]

_NOT_METRICS = {*AUTO_RESULT_KEYS, *DEBUG_METRICS, *DEFAULT_EXPERIMENT_INFO_KEYS, DONE, "should_checkpoint"}
_NOT_METRICS -= {TIME_TOTAL_S}
_STALL_SECONDS = 30.0


class TuneCallback(Callback):  # type: ignore[misc]
    """Tracks an experiment from its driver: one run for it, and one nested in that for each of its trials.

    A trial's run has its config, what it reports at each iteration, and its status: FINISHED, or FAILED with the
    error of its last attempt. A trial that is retried keeps its run; iterations that it reports again are not logged
    again. If a callback of this package trains in the trial's worker, it writes to the same run. Ray ends a worker
    with all of its processes; what such a worker has not delivered, the driver's delivery process sends if both use one
    journal root.

    Workers find the driver's journal root and local store by ``TUNE_ORIG_WORKING_DIR`` where they run on its machine.
    On other machines, set ``MLFLOW_TRACKING_URI`` and ``TRACKING_CALLBACKS_JOURNAL``, a folder that all share.

    Args:
        tracker: Where runs go; None means ``MLflowTracker()``.
        tags: Tags of all runs.
    """

    def __init__(self, tracker: MLflowTracker | None = None, *, tags: Mapping[str, Any] | None = None) -> None:
        self._callback_run = CallbackRun(tracker, tags=tags, framework=framework_tags("ray", ray.__version__))
        self._runs: dict[str, Run] = {}
        self._iterations: dict[str, int] = {}
        self._attempts: dict[str, int] = {}

    @never_in_the_way
    def on_trial_start(self, trial: RayTrial, **_: Any) -> None:
        """Start the run of a trial, or go on with it at another attempt."""
        self._attempts[trial.trial_id] = self._attempts.get(trial.trial_id, 0) + 1
        if self._attempts[trial.trial_id] > 1:
            self._run(trial).set_tags({"tracking_callbacks.attempts": self._attempts[trial.trial_id]})
            return
        run = self._run(trial)
        run.log_params(flatten(trial.config))
        run.set_tags({"ray.trial": str(trial)})
        run.log_dict(trial.config, "config/trial.json")

    @never_in_the_way
    def on_trial_result(self, trial: RayTrial, result: dict[str, Any], **_: Any) -> None:
        """Log what a trial has reported."""
        step = int(result.get("training_iteration", 0))
        if step <= self._iterations.get(trial.trial_id, 0):
            return
        self._iterations[trial.trial_id] = step
        reported = {key: value for key, value in result.items() if key not in _NOT_METRICS}
        metrics: dict[str, float] = {}
        for name, value in flatten(reported, sep="/").items():
            try:
                metrics[name] = to_scalar(name, value)
            except MetricValueError:  # a text, which MLflow has no place for at each step
                continue
        self._run(trial).log_metrics(metrics, step)

    @never_in_the_way
    def on_trial_complete(self, trial: RayTrial, **_: Any) -> None:
        """End the run of a trial."""
        self._end(trial, None)

    @never_in_the_way
    def on_trial_error(self, trial: RayTrial, **_: Any) -> None:
        """End the run of a trial that has failed for good."""
        self._end(trial, trial.get_pickled_error() or RuntimeError(str(trial.get_error() or "the trial has failed")))

    @never_in_the_way
    def on_experiment_end(self, trials: Sequence[RayTrial], **_: Any) -> None:
        """Log the table of all trials, end the experiment's run, and deliver what dead workers have left."""
        if not trials:
            return
        known = _known(trials[0])
        study = self._callback_run.study_run(known)
        study.set_tags({TRIALS_TAG: len(trials)})
        rows = [_as_row(trial) for trial in trials]
        study.record("reports", lambda: study.log_table(rows, "experiment/trials.json"))
        self._callback_run.end_study(known, None)
        self._deliver_rest(study)

    def _run(self, trial: RayTrial) -> Run:
        if trial.trial_id not in self._runs:
            self._runs[trial.trial_id], _ = self._callback_run.trial_run(_known(trial))
        return self._runs[trial.trial_id]

    def _end(self, trial: RayTrial, error: BaseException | None) -> None:
        run = self._run(trial)
        if not run.ended:
            run.end()
        run.reopen()  # the newest session of a run decides its status, and its worker's began after ours
        if error is None:
            run.end()
        else:
            run.fail(error)

    def _deliver_rest(self, study: Run) -> None:
        """Deliver what workers on other machines have left in a journal root that they share with this driver.

        The driver's delivery process takes over the runs of workers that have died on this machine. Of others it
        cannot tell that they are dead; now that the experiment is over, they are.
        """
        settings, root = study.settings, study.journal.root
        left = [run for run in pending_runs(root) if run.left and not run.held and not run.opened.owner.is_local()]
        if left and not study.journal.offline:
            start_sync(root.path, settings.store, settings.tracking_uri, settings.registry_uri, _STALL_SECONDS)


def _known(trial: RayTrial) -> Trial:
    return experiment_trial(trial.experiment_dir_name, trial.trial_id, str(trial))


def _as_row(trial: RayTrial) -> dict[str, Any]:
    metrics = {key: value for key, value in (trial.last_result or {}).items() if key not in _NOT_METRICS}
    return {"trial": str(trial), "status": trial.status, **flatten(trial.config), **flatten(metrics, sep="/")}
