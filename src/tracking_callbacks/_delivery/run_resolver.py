"""Finds the store's run for a run folder, or creates it, exactly once."""

from __future__ import annotations

import logging

from tracking_callbacks._delivery.failures import Blocked, NotYetVisible, Refused
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.stores.store import RUN_KEY_TAG, SESSION_TAG, Store
from tracking_callbacks._journal.layout import JournalRoot, RunState
from tracking_callbacks._journal.records import SessionOpened

__all__ = ["PARENT_TAG", "RunResolver", "known_id", "provisional_experiment"]

logger = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"


class RunResolver:
    """Finds the run of one folder by its key, which the run carries as a tag, or creates it."""

    def __init__(self, root: JournalRoot, store: Store, once: Once) -> None:
        self._root = root
        self._store = store
        self._once = once

    def resolve(self, opened: SessionOpened, state: RunState) -> None:
        """Set `state.run_id` and `state.experiment_id`.

        Raises:
            DeliveryError: The store did not answer, or the outcome of an earlier creation is unknown.
        """
        if opened.intent == "none":
            state.run_id = ""
            return
        if opened.run_id is not None or opened.intent == "join":
            run_id = self._joined_id(opened) if opened.run_id is None else known_id(self._root, opened.run_id)
            try:
                state.experiment_id = str(self._store.run(run_id).experiment_id)
            except Refused as error:
                raise Blocked(
                    f"the store has no run {run_id!r}, which run_id or MLFLOW_RUN_ID names: it is wrong, or the run "
                    f"is in another store ({error})"
                ) from error
            state.run_id = run_id
            return
        if state.experiment_id is None:
            state.experiment_id = self._experiment_id(opened)
        experiment_id = state.experiment_id
        tags = dict(opened.tags) | {RUN_KEY_TAG: opened.run_key, SESSION_TAG: str(opened.session)}
        if parent_id := self._parent_id(opened):
            tags[PARENT_TAG] = parent_id
        state.run_id = self._once.make(
            "run",
            find=lambda: self._store.find_runs(experiment_id, opened.run_key),
            create=lambda: self._store.create_run(
                experiment_id, start_time=opened.timestamp, tags=tags, run_name=opened.run_name
            ),
            discard=self._store.delete_run,
            look_first=True,  # a session that resumed the run on another machine may already be delivered
        )

    def delete_duplicates(self, run_key: str, state: RunState) -> None:
        """Delete the duplicates of the run that creations with a lost answer made after all."""
        if state.experiment_id is None or not self._once.in_doubt("run"):
            return
        for run_id in self._store.find_runs(state.experiment_id, run_key):
            if run_id != state.run_id:
                self._store.delete_run(run_id)

    def _joined_id(self, opened: SessionOpened) -> str:
        """Return the id of a run that a process with another journal root starts."""
        found = self._store.find_runs(self._experiment_id(opened), opened.parent_key or "")
        if not found:
            raise NotYetVisible("the run that this process joins is not created yet")
        return found[0]

    def _experiment_id(self, opened: SessionOpened) -> str:
        if opened.experiment_id is not None:
            found = provisional_experiment(self._root, self._store, opened.experiment_id)
            return found or self._store.check_experiment(opened.experiment_id)
        return self._store.experiment_id(opened.experiment)

    def _parent_id(self, opened: SessionOpened) -> str | None:
        if opened.parent_id is not None:
            return known_id(self._root, opened.parent_id)
        if opened.parent_key is None:
            return None
        parent = self._root.run(opened.parent_key).read_state() or self._root.final_state(opened.parent_key)
        if parent is not None and parent.run_id is not None:
            return parent.run_id
        experiment_id = self._experiment_id(opened)
        found = self._store.find_runs(experiment_id, opened.parent_key)
        if found:
            return found[0]
        if self._root.run(opened.parent_key).path.exists():
            raise NotYetVisible("the parent run is not created yet")
        logger.warning("run %s: its parent run %s was not found; it is not nested", opened.run_key, opened.parent_key)
        return None


def known_id(root: JournalRoot, text: str) -> str:
    """Return the server's id for one that may be provisional.

    Raises:
        NotYetVisible: The server has not given it yet.
    """
    if not root.ids.exists():
        return text
    from tracking_callbacks._journal.provisional import NotKnownYetError, ProvisionalIds

    try:
        return ProvisionalIds(root).real(text)
    except NotKnownYetError as error:
        raise NotYetVisible(str(error)) from error


def provisional_experiment(root: JournalRoot, store: Store, experiment_id: str) -> str | None:
    """Return the store's id of an experiment whose id is provisional, and create it if it does not exist.

    Returns:
        None if `experiment_id` is not provisional, but the store's own.
    """
    if not root.ids.exists():
        return None
    from tracking_callbacks._journal.provisional import ProvisionalIds

    found = ProvisionalIds(root).find(experiment_id)
    return None if found is None else store.experiment_id(found.name, found.artifact_location, found.tags)
