"""Which run a framework's callback writes to, from its first training event on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from tracking_callbacks._journal.records import Status
from tracking_callbacks._runs.run import Run, active_runs
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks.settings import Settings

__all__ = ["CallbackRun", "run_key_from", "run_reference"]

logger = logging.getLogger(__name__)

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"


def run_reference(run: Run) -> dict[str, str]:
    """Return what a checkpoint or a saved model has to say of its run, for a later process that continues it.

    Not the run id, which is unknown while the server is away.
    """
    return {"run_key": run.run_key} | _place(run.settings)


def run_key_from(address: object, settings: Settings, *, owner: str) -> str | None:
    """Return the key of the run at `address`, None where that is no run in the store and experiment of `settings`.

    Args:
        address: What `run_reference` gave once, as it was read back.
        settings: Where the training's own runs go.
        owner: What it was read from, for the warning about another store.
    """
    if not isinstance(address, Mapping) or not isinstance(address.get("run_key"), str):
        return None
    here = _place(settings)
    if any(address.get(key) != value for key, value in here.items()):
        logger.warning(
            "%s's run is in experiment %r at %s; a new run begins in %r at %s",
            *(owner, address.get("experiment_name"), address.get("tracking_uri")),
            *(here["experiment_name"], here["tracking_uri"]),
        )
        return None
    return str(address["run_key"])


def _place(settings: Settings) -> dict[str, str]:
    return {"tracking_uri": settings.masked_uri, "experiment_name": settings.experiment_name}


class CallbackRun:
    """The run of one callback: found or started at the first training event, ended with the training.

    A run that the user started is joined and never ended: a ``with tracker.start_run()`` block, an active
    ``mlflow.start_run()``, or ``MLFLOW_RUN_ID``. Everything else is a run of the callback's own.

    Args:
        tracker: Where runs go; None stands for ``MLflowTracker()``, built at the first event.
        run_name: Name of runs that are started.
        tags: Tags of runs that are started.

    Attributes:
        run: The run that is written to; None before the first event.
        training: A training has begun and has not ended.
        search: The run that a search's trials are nested under; None outside a search.
    """

    def __init__(
        self,
        tracker: MLflowTracker | None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self.tracker = tracker
        self.run: Run | None = None
        self.training = False
        self.search: Run | None = None
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._trained = False
        self._borrowed: Run | None = None

    def begin_training(self, *, resume_key: str | None = None, continues: bool = False) -> Run:
        """Return the run of a training that begins now.

        An evaluation's run that has seen no training yet is taken over; a training that began and never ended is
        closed first, with the status that is true.

        Args:
            resume_key: `Run.run_key` of an earlier run, of this process or not, that this training continues.
            continues: The training continues this object's own last run.
        """
        self._close_interrupted()
        self._end_search()
        run = self.run
        if run is None or not self._may_continue(run, resume_key, continues):
            if run is not None and not self._trained and not self._user_owns(run):
                run.end()  # of an evaluation, and the training goes on in another
            run = self._join() or self._start(resume_key)
        elif run.ended:
            run.reopen()
            if run is self._borrowed:  # whose block is over: nobody else will end it now
                self._borrowed = None
        run.status_at_exit = "KILLED"
        self.run = run
        self.training = self._trained = True
        return run

    def begin_trial(self, run_name: str) -> tuple[Run, Run]:
        """Return a new run, and that of the search which this training is a trial of; the one is nested under it.

        The first trial begins the search: its run is the one that would be joined by a training, else a new one. It
        ends with the next training that is no trial, or with the program.

        Args:
            run_name: Name of the trial's run.
        """
        self._close_interrupted()
        if self.search is None:
            evaluated = None if self._trained else self.run
            self.search = evaluated or self._join() or self._start(None)
            self.search.status_at_exit = "FINISHED"  # nobody tells a callback that a search has come to its end
        self.run = MLflowTracker.of(self.search).start_run(run_name, tags=self._tags, parent=self.search)
        self.run.status_at_exit = "FAILED"  # the search has caught what stopped its last trial
        self.training = self._trained = True
        return self.run, self.search

    def run_for_evaluation(self) -> Run:
        """Return the run that an evaluation belongs to: that of the last training, else one that training joins.

        A run that no training joins is FINISHED when the program ends without an exception.
        """
        if self.run is None:
            self.run = self._join() or self._start(None)
            self.run.status_at_exit = "FINISHED"
        return self.run

    def end_training(self, status: Status = "FINISHED", error: BaseException | None = None) -> None:
        """End the run if it is the callback's own, because of `error` if there is one; a second call does nothing."""
        if self.training and self.run is not None:
            self.training = False
            if self._user_owns(self.run):
                return
            if error is None:
                self.run.end(status)
            else:
                self.run.fail(error, status)

    @property
    def settings(self) -> Settings:
        """Where runs go that the callback starts itself."""
        return self._tracker().settings

    def _may_continue(self, run: Run, resume_key: str | None, continues: bool) -> bool:
        if resume_key is not None:
            return run.run_key == resume_key
        return continues or not self._trained or run in active_runs.get()

    def _close_interrupted(self) -> None:
        """The process lives, yet its training never ended: an exception, seen by the interpreter or caught."""
        if self.training and self.run is not None and not self._user_owns(self.run):
            self.run.end_interrupted(otherwise="FAILED")
        self.training = False

    def _end_search(self) -> None:
        if self.search is not None and not self._user_owns(self.search):
            self.search.end()
        self.search = None

    def _user_owns(self, run: Run) -> bool:
        return run.joined or run is self._borrowed

    def _join(self) -> Run | None:
        entered = [run for run in active_runs.get() if self.tracker is None or run.settings == self.tracker.settings]
        if entered:
            self._borrowed = entered[-1]
            return self._borrowed
        if run_id := os.environ.get(RUN_ID_VARIABLE):
            return self._tracker().join_run(run_id)
        mlflow = sys.modules.get("mlflow")
        active = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
        if active is None or mlflow is None:
            return None
        # An active run lives where mlflow's own URI points to, whatever ours says.
        there = self._tracker().at(mlflow.get_tracking_uri())
        return there.join_run(active.info.run_id)

    def _start(self, resume_key: str | None) -> Run:
        if resume_key is not None:
            return self._tracker().resume_run(resume_key)
        return self._tracker().start_run(self._run_name, tags=self._tags)

    def _tracker(self) -> MLflowTracker:
        if self.tracker is None:
            self.tracker = MLflowTracker()
        return self.tracker
