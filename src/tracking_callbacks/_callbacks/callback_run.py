"""Which run a framework's callback writes to, from its first training event on."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import filelock  # noqa: F401 - the start of a run needs it, and would wait 6 ms for its import

from tracking_callbacks._callbacks.searches import Trial, current_trial
from tracking_callbacks._callbacks.training_watch import WatchedCall, current_call
from tracking_callbacks._journal.confined import is_key
from tracking_callbacks._journal.records import Status
from tracking_callbacks._runs.exits import is_pruned
from tracking_callbacks._runs.run import Run, active_runs
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.settings import Settings, is_switched_on

__all__ = ["CallbackRun", "check_tracker", "run_key_from", "run_reference"]

logger = logging.getLogger(__name__)

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
NESTED_VARIABLE = "MLFLOW_NESTED_RUN"

# Runs of the user that a training run of this process has written to: the identity of each by `Run.run_key`, as
# checkpoints name it. The next training run is nested, so that the folds of a cross-validation are not poured into one.
_trained_in: dict[str, str] = {}

# The run of each study whose trials train in this process, by what identifies the study.
_studies: dict[tuple[str, ...], Run] = {}
_studies_lock = threading.RLock()

# The run of each trial that began in this process, for as long as something else holds it, and the keys of all of them.
_trials: WeakValueDictionary[str, Run] = WeakValueDictionary()
_begun_trials: set[str] = set()


def _end_studies() -> None:
    """End the runs of studies: training that is no trial has begun."""
    with _studies_lock:
        for run in _studies.values():
            if not run.joined and run.status_at_exit == "FINISHED" and run not in active_runs.get():
                run.end()
        _studies.clear()
        _begun_trials.clear()


def run_reference(run: Run) -> dict[str, str]:
    """Return what a checkpoint or a saved model says about its run, for a later process that continues it.

    The run id is not part of it, because it is unknown while the server is away.
    """
    return {"run_key": run.run_key} | _place(run.settings)


def run_key_from(reference: object, settings: Settings, *, owner: str) -> str | None:
    """Return the key of the run that `reference` names, None where that run is in another store or experiment.

    Args:
        reference: What `run_reference` returned, as it was read back.
        settings: Where new runs go.
        owner: What it was read from, for the warning about another store.
    """
    if not isinstance(reference, Mapping) or not isinstance(reference.get("run_key"), str):
        return None
    if not is_key(reference["run_key"]):
        logger.warning("%s names the run %.100r, which is not a run key; a new run begins", owner, reference["run_key"])
        return None
    here = _place(settings)
    if any(reference.get(key) != value for key, value in here.items()):
        logger.warning(
            "%s's run is in experiment %r at %s; a new run begins in %r at %s",
            *(owner, reference.get("experiment_name"), reference.get("tracking_uri")),
            *(here["experiment_name"], here["tracking_uri"]),
        )
        return None
    return str(reference["run_key"])


def _place(settings: Settings) -> dict[str, str]:
    return {"tracking_uri": settings.masked_uri, "experiment_name": settings.experiment_name}


@dataclass(frozen=True, slots=True)
class _UsersRun:
    """A run that the user has started.

    Attributes:
        identity: Its `Run.run_key` where the user has entered it here, otherwise the server's id.
        tracker: Where runs that are nested under it go.
        entered: The run, if the user has entered it here.
        began: When it began, in milliseconds since the epoch; 0 if that is unknown.
    """

    identity: str
    tracker: MLflowTracker
    entered: Run | None = None
    began: int = 0


def check_tracker(tracker: MLflowTracker | None) -> MLflowTracker | None:
    """Return `tracker` unchanged.

    Raises:
        ConfigError: It is no tracker, but for example the path of a config file.
    """
    if tracker is None or isinstance(tracker, MLflowTracker):
        return tracker
    got = "the class" if tracker is MLflowTracker else repr(tracker)[:200]
    if isinstance(tracker, str | Path):
        got += f"; a config file goes into MLflowTracker(config={str(tracker)!r})"
    raise ConfigError(f"tracker: expected an MLflowTracker or None, got {got}", setting="tracker")


class CallbackRun:
    """The run of one callback: found or started at the first training event, ended when training ends.

    A run that the user started is joined and never ended: a ``with tracker.start_run()`` block, an active
    ``mlflow.start_run()``, or ``MLFLOW_RUN_ID``. A second training run in it has a run of its own, nested under it, and
    so has every one with ``MLFLOW_NESTED_RUN``. Every run that is not joined belongs to the callback.

    Training that begins inside a watched call (see `training_watch`) ends with that call at the latest: FAILED with the
    exception, KILLED after an interruption or by a pruned trial.

    Args:
        tracker: Where runs go; None means ``MLflowTracker()``, built at the first event.
        run_name: Name of runs that are started.
        tags: Tags of runs that are started.
        framework: Tags that name the framework and its version. They are set when a run is created, because the UI
            shows a run's tags in the order in which they came, and those of its delivery come next.
        wind_up: Logs what the callback still holds; called before training that raised an exception ends.
        keep_model: Logs the model of training that an exception has stopped; called after `wind_up` with the exception,
            but not for a trial that a search has pruned.

    Attributes:
        run: The run that is written to; None before the first event.
        training: Training has begun and has not ended.
        search: The run that a search's trials are nested under; None outside a search.
        in_trial: The training is a trial of a study that the user's own code runs.
        trials: Number of trials of that study so far; 1 outside a study.
        run_name: Name of runs that are started; None means that MLflow makes one up.
    """

    def __init__(
        self,
        tracker: MLflowTracker | None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        framework: Mapping[str, str] | None = None,
        wind_up: Callable[[], object] | None = None,
        keep_model: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.tracker = check_tracker(tracker)
        self.run: Run | None = None
        self.training = False
        self.search: Run | None = None
        self.run_name = run_name
        self.in_trial = False
        self.trials = 1
        self._tags = dict(tags or {})
        self._framework = dict(framework or {})
        self._wind_up = wind_up
        self._keep_model = keep_model
        self._trained = False
        self._borrowed: Run | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the runs out of a copy, which begins new ones: they belong to this process and to this object."""
        return self.__dict__ | {"run": None, "search": None, "_borrowed": None, "training": False, "_trained": False}

    def _first_tags(self) -> dict[str, Any]:
        return self._tags | (self._framework if self.settings.record.environment else {})

    def begin_training(
        self, *, resume_key: str | None = None, continues: bool = False, at_step: int | None = None
    ) -> Run:
        """Return the run of the training that begins now.

        If an evaluation has opened a run and no training has used it, training takes it over. If earlier training
        began and never ended, its run is first ended with its true status.

        Args:
            resume_key: `Run.run_key` of an earlier run, from this process or another, that this training continues.
            continues: Training continues the last run of this object.
            at_step: Training step that a continued run continues from.
        """
        self._close_interrupted()
        self._end_search()
        if resume_key is None and not continues and (trial := self._trial()) is not None:
            return self._begin_trial_of(trial)
        _end_studies()
        run = self.run
        if run is None or not self._may_continue(run, resume_key, continues):
            if run is not None and not self._trained and not self._user_owns(run):
                run.end()  # an evaluation opened it, and training uses another
            run = self._run_for_training(resume_key, at_step)
        elif run.ended:
            run.reopen(at_step=at_step)
            if run is self._borrowed:  # the user's block has ended it: from now on the callback does
                self._borrowed = None
        if self._user_owns(run):
            _trained_in[run.run_key] = _identity(run)
        run.status_at_exit = "KILLED"
        self.run = run
        self.in_trial, self.trials = False, 1
        self.training = self._trained = True
        if (call := current_call()) is not None:
            call.on_end(self._on_call_end)
        return run

    def begin_trial(self, run_name: str, search_call: WatchedCall | None = None) -> tuple[Run, Run]:
        """Return a new run for a trial, and the run of the search that it is nested under.

        The first trial begins the search. The search uses the run that training would join, else a new one.

        Args:
            run_name: Name of the trial's run.
            search_call: The search, whose end ends its run. With None, that ends at the next training that is not a
                trial, or with the program.
        """
        self._close_interrupted()
        if self.search is None:
            evaluated = None if self._trained else self.run
            self.search = evaluated or self._join_or_start(self.run_name or "search")
            self.search.status_at_exit = "FINISHED"  # no hook says that a search is over
        if (call := current_call()) is not None:
            call.on_end(self._on_call_end)
        if search_call is not None:
            search_call.on_end(self._on_search_call_end)
        self.run = MLflowTracker.of(self.search).start_run(run_name, tags=self._first_tags(), parent=self.search)
        self.run.status_at_exit = "FAILED"  # the search has caught what stopped its last trial
        self.training = self._trained = True
        return self.run, self.search

    def _begin_trial_of(self, trial: Trial) -> Run:
        """Return a new run for a trial of a study, nested under the study's run."""
        if self.run is not None and not self._trained and not self._user_owns(self.run):
            self.run.end()  # an evaluation opened it
        self.run = self._start_trial(trial)
        self.run.log_params({f"trial.{name}": value for name, value in trial.params.items()})
        self.run.status_at_exit = "KILLED"
        self.training = self._trained = self.in_trial = True
        self.trials = trial.number + 1
        if (call := current_call()) is not None:
            call.on_end(self._on_call_end)
        return self.run

    def study_run(self, trial: Trial) -> Run:
        """Return the run of a trial's study: one that the user has started, else one that all its processes share."""
        with _studies_lock:
            key = (*_place(self.settings).values(), trial.study_key)
            study = _studies.get(key)
            if study is None:
                study = _studies[key] = self._join_or_start(trial.study, run_key=trial.study_key)
                study.status_at_exit = "FINISHED"  # no hook says that a study is over
            elif study.ended:
                study.reopen()
            return study

    def trial_run(self, trial: Trial) -> tuple[Run, bool]:
        """Return the run of a trial, nested under that of the study, and whether it is new.

        A callback within the trial's objective may have started it already.
        """
        run = _trials.get(trial.run_key)
        return (self._start_trial(trial), True) if run is None else (run, False)

    def end_study(self, trial: Trial, error: BaseException | None) -> None:
        """End the run of a trial's study, if it does not belong to the user."""
        with _studies_lock:
            study = _studies.get((*_place(self.settings).values(), trial.study_key))
        if study is not None and not self._user_owns(study) and study not in active_runs.get():
            self._end(study, "FINISHED", error)

    def _start_trial(self, trial: Trial) -> Run:
        with _studies_lock:
            # An objective that trains twice makes two runs.
            run_key = None if trial.run_key in _begun_trials else trial.run_key
            _begun_trials.add(trial.run_key)
            known: dict[str, Any] = {
                "tags": self._first_tags(),
                "run_key": run_key,
                "start_time": trial.began or None,
            }
            if trial.is_remote:
                run = self._tracker().start_nested(trial.name, parent_key=trial.study_key, **known)
            else:
                study = self.study_run(trial)
                run = MLflowTracker.of(study).start_run(trial.name, parent=study, **known)
            if run_key is not None:
                _trials[run_key] = run
        return run

    def _trial(self) -> Trial | None:
        """Return the trial that this training belongs to, None if the trial's own code has started a run for it."""
        trial = current_trial()
        users = None if trial is None else self._users_run()
        return None if users is not None and trial is not None and users.began >= trial.began else trial

    def run_for_evaluation(self) -> Run:
        """Return the run that an evaluation belongs to: that of the last training, else one that training will join.

        If no training joins it, the run is FINISHED when the program ends without an exception.
        """
        if self.run is None:
            self.run = self._join_or_start()
            self.run.status_at_exit = "FINISHED"
        return self.run

    def end_training(self, status: Status = "FINISHED", error: BaseException | None = None) -> None:
        """End the run if it belongs to the callback. A second call does nothing.

        Args:
            status: How it ends without an error.
            error: The exception that has ended training.
        """
        if self.training and self.run is not None:
            self.training = False
            self._end(self.run, status, error)
            call = current_call()
            if call is None:
                self._wait(None)
            else:
                call.on_end(self._wait)  # after the hooks of the user's other callbacks

    @never_in_the_way
    def _wait(self, error: BaseException | None) -> None:
        if self.run is None:
            return
        if error is None:
            self.run.wait_for_registration()
        if self._user_owns(self.run):  # it has not ended, which would have waited
            self.run.outlast_supervisor()

    @property
    def settings(self) -> Settings:
        """The settings of the runs that the callback starts."""
        return self._tracker().settings

    def check_settings(self) -> None:
        """Raise what is wrong with the settings, if the tracker was not built by the user and so checked before.

        Raises:
            ConfigError: A value of the environment cannot be used.
        """
        self._tracker()

    def _may_continue(self, run: Run, resume_key: str | None, continues: bool) -> bool:
        if resume_key is not None:
            return run.run_key == resume_key
        if continues:
            return True
        opened_by_evaluation = not self._trained
        return opened_by_evaluation and not (self._user_owns(run) and self._must_nest(_identity(run)))

    @never_in_the_way
    def _on_call_end(self, error: BaseException | None) -> None:
        """End training that has not announced its end when the framework's method returns or raises."""
        if not self.training or self.run is None:
            return
        if self._wind_up is not None:
            self._wind_up()
        if error is not None and self._keep_model is not None and not is_pruned(error):
            self._keep_model(error)
        self.training = False
        self._end(self.run, "FINISHED" if error is None else "KILLED", error)

    @never_in_the_way
    def _on_search_call_end(self, error: BaseException | None) -> None:
        if self.search is not None:
            self._end(self.search, "FINISHED" if error is None else "KILLED", error)
            self.search = None

    def _end(self, run: Run, status: Status, error: BaseException | None = None) -> None:
        if self._user_owns(run):
            return
        if error is None or isinstance(error, SystemExit):  # the program ends on purpose, which is no error of the run
            run.end(status)
        else:
            run.fail(error)

    def _close_interrupted(self) -> None:
        """End the run of unwatched training that never announced its end, although this process lives."""
        if self.training and self.run is not None and not self._user_owns(self.run):
            self.run.end_interrupted(otherwise="FAILED")
        self.training = False

    def _end_search(self) -> None:
        if self.search is not None and not self._user_owns(self.search):
            self.search.end()
        self.search = None

    def _user_owns(self, run: Run) -> bool:
        return run.joined or run is self._borrowed

    def _run_for_training(self, resume_key: str | None, at_step: int | None) -> Run:
        """Return the run that the user has started, one nested under it, or a run of the callback."""
        users = self._users_run()
        if users is None:
            return self._start(resume_key, at_step)
        resumes_it = resume_key is not None and _trained_in.get(resume_key) == users.identity
        if resumes_it or not self._must_nest(users.identity):
            return self._join(users)
        if resume_key is not None:  # an earlier nested run, which continues
            return self._start(resume_key, at_step)
        return users.tracker.start_run(self.run_name, tags=self._first_tags(), parent=users.entered or users.identity)

    def _join(self, users: _UsersRun) -> Run:
        if users.entered is None:
            return users.tracker.join_run(users.identity)
        self._borrowed = users.entered
        return users.entered

    def _join_or_start(self, run_name: str | None = None, run_key: str | None = None) -> Run:
        users = self._users_run()
        return self._start(run_name=run_name, run_key=run_key) if users is None else self._join(users)

    def _users_run(self) -> _UsersRun | None:
        """Return the run that the user has started, None if there is none."""
        entered = [run for run in active_runs.get() if self.tracker is None or run.settings == self.tracker.settings]
        if entered:
            run = entered[-1]
            return _UsersRun(run.run_key, MLflowTracker.of(run), run, began=run.began)
        if run_id := os.environ.get(RUN_ID_VARIABLE, "").strip():
            return _UsersRun(run_id, self._tracker())
        mlflow = sys.modules.get("mlflow")
        active = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
        if active is None or mlflow is None:
            return None
        # The active run lives at mlflow's own URI, which may differ from ours.
        there = self._tracker().at(mlflow.get_tracking_uri(), experiment_id=active.info.experiment_id)
        return _UsersRun(active.info.run_id, there, began=active.info.start_time)

    @staticmethod
    def _must_nest(identity: str) -> bool:
        return identity in _trained_in.values() or is_switched_on(NESTED_VARIABLE)

    def _start(
        self,
        resume_key: str | None = None,
        at_step: int | None = None,
        *,
        run_name: str | None = None,
        run_key: str | None = None,
    ) -> Run:
        if resume_key is not None:
            return self._tracker().resume_run(resume_key, at_step=at_step)
        return self._tracker().start_run(run_name or self.run_name, tags=self._first_tags(), run_key=run_key)

    def _tracker(self) -> MLflowTracker:
        if self.tracker is None:
            self.tracker = MLflowTracker()
        return self.tracker


def _identity(run: Run) -> str:
    """Return what a run of the user is known by: its id where it was joined, its key where it was entered."""
    return (run.journal.known_run_id() or run.run_key) if run.joined else run.run_key
