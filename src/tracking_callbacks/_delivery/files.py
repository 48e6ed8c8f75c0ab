"""Delivers one artifact, dataset, model or picture from its snapshot."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tracking_callbacks._delivery.describing import deliver_descriptions
from tracking_callbacks._delivery.failures import Refused, Transient
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.models import delete_model, deliver_model
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.promotion import deliver_promotion
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._journal.checkpoints import OverwrittenError, claim, secure
from tracking_callbacks._journal.confined import OutsideError, check_tree, delete, inside, is_key
from tracking_callbacks._journal.layout import JournalRoot, RunFolder, RunState
from tracking_callbacks._journal.records import (
    Artifact,
    Automatic,
    Dataset,
    DeleteModel,
    Describe,
    Drawing,
    Model,
    Promote,
    StoreCall,
)
from tracking_callbacks._values.names import artifact_place
from tracking_callbacks.errors import InputError

__all__ = ["FileRecord", "deliver_file", "discard_staged", "keep_staged"]

FileRecord = Artifact | Automatic | Dataset | DeleteModel | Describe | Drawing | Model | Promote | StoreCall


def deliver_file(
    store: Store,
    heavy: HeavyProcess,
    once: Once,
    run_id: str,
    record: FileRecord,
    folder: RunFolder,
    state: RunState,
) -> bool:
    """Send what `record` describes to the store; harmless when repeated.

    Args:
        store: The store.
        heavy: Draws pictures.
        once: Prevents a model or version from being created twice.
        run_id: The run.
        record: What to send.
        folder: The run's folder.
        state: Receives the version of a registered model, and what came of its promotion, by the record's key.

    Returns:
        False if the record is a checkpoint that was dropped to make room for later ones.

    Raises:
        Refused: The snapshot is gone or does not lie in the run's folder, or the store will never accept it.
        DeliveryError: The store did not accept it this time.
    """
    if isinstance(record, Dataset):
        store.log_dataset(run_id, record)
        return True
    if isinstance(record, Promote):
        deliver_promotion(store, once, run_id, record, state)
        return True
    if isinstance(record, DeleteModel):
        delete_model(store, run_id, record.record_key, state)
        return True
    if isinstance(record, StoreCall):
        snapshot = _checked_snapshot(record.staged, record, folder) if record.staged is not None else None
        from tracking_callbacks._delivery.calls import CallDelivery  # the plugin alone writes them

        CallDelivery(store, once, JournalRoot(folder.path.parent), state, run_id).deliver(record.call, snapshot)
        return True
    if isinstance(record, Describe):
        deliver_descriptions(store, run_id, state, record.status)
        return True
    _check_place(record)
    if record.staged is None:
        if isinstance(record, Drawing):
            _deliver_drawing(store, heavy, run_id, record, None, folder, state)
        return True
    snapshot = _checked_snapshot(record.staged, record, folder)
    if isinstance(record, Drawing):
        _deliver_drawing(store, heavy, run_id, record, snapshot, folder, state)
        return True
    if not snapshot.exists():
        if _is_checkpoint(record):
            return False
        raise Refused(f"the snapshot {record.staged} is gone")
    if isinstance(record, Artifact) and record.held:
        _secure(snapshot, record)
    if isinstance(record, Model):
        deliver_model(store, once, run_id, record, snapshot, state)
        return True
    parent = PurePosixPath(record.artifact_path or "")
    below = None if parent == PurePosixPath() else str(parent)
    if not snapshot.is_dir():
        store.log_artifact(run_id, snapshot, below)
        if isinstance(record, Artifact) and record.table:
            store.declare_table(run_id, str(parent / snapshot.name))
    elif snapshot.parent == folder.staged:  # the content of a folder, whose own name is not part of the path
        store.log_artifacts(run_id, snapshot, below)
    else:
        store.log_artifacts(run_id, snapshot, str(parent / snapshot.name))
    return True


def _checked_snapshot(staged: str, record: FileRecord, folder: RunFolder) -> Path:
    try:
        snapshot = _take(staged, record, folder)
        check_tree(snapshot)
    except OutsideError as error:
        raise Refused(str(error)) from error
    return snapshot


def _secure(snapshot: Path, record: Artifact) -> None:
    try:
        secure(snapshot, record.held)
    except (OverwrittenError, OutsideError) as error:
        raise Refused(str(error)) from error
    except FileNotFoundError as error:
        raise Refused(f"the snapshot {record.staged} is incomplete: {error}") from error
    except OSError as error:
        raise Transient(f"cannot copy the checkpoint {record.staged} before it is sent: {error}") from error


def _deliver_drawing(
    store: Store,
    heavy: HeavyProcess,
    run_id: str,
    record: Drawing,
    snapshot: Path | None,
    folder: RunFolder,
    state: RunState,
) -> None:
    for path in heavy.draw(run_id, record, snapshot, folder.path):
        store.log_artifact(run_id, path, record.artifact_path)
        state.pictures[path.name] = f"{record.artifact_path}/{path.name}"
    delete(folder.drawn, within=folder.path)


def discard_staged(record: FileRecord, folder: RunFolder) -> None:
    """Remove the snapshot of a record that has been acknowledged."""
    if (holder := _holder(record, folder)) is not None:
        delete(holder, within=folder.path)


def keep_staged(record: FileRecord, folder: RunFolder, root: JournalRoot) -> Path | None:
    """Move the snapshot of a refused record to where nothing deletes it, and return that; None means there is none.

    Raises:
        OSError: It cannot be moved.
    """
    holder = _holder(record, folder)
    return None if holder is None else root.keep_rejected(holder, folder.run_key)


def _holder(record: FileRecord, folder: RunFolder) -> Path | None:
    """Return the folder that one record's snapshot has to itself; None means it has none, or none inside the run's."""
    if isinstance(record, Dataset | DeleteModel | Describe | Promote) or record.staged is None:
        return None
    try:
        snapshot = _take(record.staged, record, folder)
    except OutsideError:
        return None
    return snapshot if snapshot.parent == folder.staged else snapshot.parent


def _take(staged: str, record: FileRecord, folder: RunFolder) -> Path:
    """Return where a snapshot lies whose path was read from a journal.

    Raises:
        OutsideError: It names no snapshot of this run, see `RunFolder.staged_path`.
    """
    snapshot = folder.staged_path(staged)
    if not _is_checkpoint(record):
        return snapshot
    if snapshot.parent == folder.staged:  # claiming it would move the snapshots of all other records
        raise OutsideError(f"the path {staged!r} names no checkpoint")
    inside(folder.staged, f"{snapshot.parent.name}.sending")  # where `claim` moves it
    return claim(snapshot)


def _check_place(record: Artifact | Automatic | Drawing | Model) -> None:
    """Check what becomes part of a path or search in the store.

    Raises:
        Refused: It leads out of the run's artifacts, or its record's key is none.
    """
    place = record.name if isinstance(record, Model) else record.artifact_path or ""
    try:
        artifact_place(place, "artifact_path")
    except InputError as error:
        raise Refused(str(error)) from error
    if isinstance(record, Model) and not is_key(record.record_key):
        raise Refused(f"the model's record key {record.record_key[:200]!r} is not one")


def _is_checkpoint(record: FileRecord) -> bool:
    return isinstance(record, Artifact | Model) and record.checkpoint
