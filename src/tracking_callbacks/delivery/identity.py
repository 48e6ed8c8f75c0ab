"""Which run of the store a run folder is: found or created, once."""

from __future__ import annotations

import logging

from tracking_callbacks.delivery.errors import Transient
from tracking_callbacks.delivery.store import RUN_KEY_TAG, SESSION_TAG, MlflowStore
from tracking_callbacks.folders import JournalRoot, RunFolder, RunState
from tracking_callbacks.records import SessionOpened, now_ms

__all__ = ["Identity"]

logger = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
# A create whose answer was lost may still be under way in the server; within this time it is looked for, not repeated.
_LATE_COMMIT_MS = 20_000


class Identity:
    """Finds or creates the run of one folder, through failures at any point.

    ``create_run`` is not idempotent, so every run carries its key as a tag. After an attempt with an unknown outcome
    the run is searched for until a late commit must have shown itself; should two runs carry one key in the end, the
    other one, which is empty, is deleted.
    """

    def __init__(self, folder: RunFolder, root: JournalRoot, store: MlflowStore) -> None:
        self._folder = folder
        self._root = root
        self._store = store

    def resolve(self, opened: SessionOpened, state: RunState) -> None:
        """Set `state.run_id` and `state.experiment_id`.

        Raises:
            DeliveryError: The store did not say.
        """
        if opened.run_id is not None:
            state.experiment_id = str(self._store.run(opened.run_id).info.experiment_id)
            state.run_id = opened.run_id
            return
        if state.experiment_id is None:
            state.experiment_id = self._store.experiment_id(opened.experiment)
        experiment_id = state.experiment_id
        if state.create_began is not None or opened.resumed:
            found = self._store.find_runs(experiment_id, opened.run_key)
            if found:
                self._keep_one(found, state)
                return
            if state.create_began is not None and 0 <= now_ms() - state.create_began < _LATE_COMMIT_MS:
                raise Transient("the answer to the run's creation was lost; looking whether it was made")
        tags = dict(opened.tags) | {RUN_KEY_TAG: opened.run_key, SESSION_TAG: str(opened.session)}
        if parent_id := self._parent_id(opened):
            tags[PARENT_TAG] = parent_id
        repeated = state.create_began is not None
        state.create_began = now_ms()
        self._folder.write_state(state)
        try:
            state.run_id = self._store.create_run(
                experiment_id, start_time=opened.timestamp, tags=tags, run_name=opened.run_name
            )
        except Transient as error:
            if not error.late_commit:
                state.create_began = 0  # long ago: look for it once, then repeat
                self._folder.write_state(state)
            raise
        if repeated:
            self._keep_one(self._store.find_runs(experiment_id, opened.run_key) or [state.run_id], state)

    def _keep_one(self, found: list[str], state: RunState) -> None:
        state.run_id = state.run_id if state.run_id in found else found[0]
        for other in found:
            if other != state.run_id:
                self._store.delete_run(other)

    def _parent_id(self, opened: SessionOpened) -> str | None:
        if opened.parent_id is not None or opened.parent_key is None:
            return opened.parent_id
        parent = self._root.run(opened.parent_key).read_state() or self._root.final_state(opened.parent_key)
        if parent is not None and parent.run_id is not None:
            return parent.run_id
        experiment_id = self._store.experiment_id(opened.experiment)
        found = self._store.find_runs(experiment_id, opened.parent_key)
        if found:
            return found[0]
        if self._root.run(opened.parent_key).path.exists():
            raise Transient("the parent run is not created yet")
        logger.warning("run %s: its parent %s is unknown, it is not nested", opened.run_key, opened.parent_key)
        return None
