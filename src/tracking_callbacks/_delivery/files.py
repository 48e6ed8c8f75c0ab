"""Delivers one artifact, dataset, model or picture from its snapshot."""

from __future__ import annotations

from pathlib import Path

from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.models import deliver_model
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.pictures.drawing import deliver_drawing
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._journal.checkpoints import claim
from tracking_callbacks._journal.confined import OutsideError, check_tree, delete, inside
from tracking_callbacks._journal.layout import RunFolder
from tracking_callbacks._journal.records import Artifact, Automatic, Dataset, Drawing, Model

__all__ = ["FileRecord", "deliver_file", "discard_staged"]

FileRecord = Artifact | Automatic | Dataset | Drawing | Model


def deliver_file(store: MlflowStore, once: Once, run_id: str, record: FileRecord, folder: RunFolder) -> bool:
    """Send what `record` describes to the store; harmless when repeated.

    Returns:
        False if the record is a checkpoint that was dropped to make room for later ones.

    Raises:
        Refused: The snapshot is gone or does not lie in the run's folder, or the store will never accept it.
        DeliveryError: The store did not accept it this time.
    """
    if isinstance(record, Dataset):
        store.log_dataset(run_id, record)
        return True
    if record.staged is not None:
        try:
            snapshot = _take(record.staged, record, folder)
            check_tree(snapshot)
        except OutsideError as error:
            raise Refused(str(error)) from error
    if isinstance(record, Drawing):
        deliver_drawing(store, run_id, record, folder)
        return True
    if record.staged is None:
        return True
    if not snapshot.exists():
        if _is_checkpoint(record):
            return False
        raise Refused(f"the snapshot {record.staged} is gone")
    if isinstance(record, Model):
        deliver_model(store, once, run_id, record, snapshot)
    elif not snapshot.is_dir():
        store.log_artifact(run_id, snapshot, record.artifact_path)
        if isinstance(record, Artifact) and record.table:
            place = "/".join(filter(None, (record.artifact_path, snapshot.name)))
            store.declare_table(run_id, place)
    elif snapshot.parent == folder.staged:  # the content of a folder, whose own name is not part of the path
        store.log_artifacts(run_id, snapshot, record.artifact_path)
    else:
        place = f"{record.artifact_path}/{snapshot.name}" if record.artifact_path else snapshot.name
        store.log_artifacts(run_id, snapshot, place)
    return True


def discard_staged(record: FileRecord, folder: RunFolder) -> None:
    """Remove the snapshot of a record that has been acknowledged."""
    if isinstance(record, Dataset) or record.staged is None:
        return
    try:
        snapshot = _take(record.staged, record, folder)
    except OutsideError:  # it was refused, and nothing there is ours to delete
        return
    delete(snapshot if snapshot.parent == folder.staged else snapshot.parent, within=folder.staged)


def _take(staged: str, record: FileRecord, folder: RunFolder) -> Path:
    """Return where a snapshot lies whose path was read from a journal.

    Raises:
        OutsideError: It is neither ``staged/<holder>`` nor ``staged/<holder>/<name>``, or passes through a link.
    """
    snapshot = inside(folder.path, staged)
    parts = snapshot.relative_to(folder.path).parts
    if parts[0] != folder.staged.name or len(parts) not in (2, 3):
        raise OutsideError(f"the path {staged!r} names no snapshot")
    if not _is_checkpoint(record):
        return snapshot
    if snapshot.parent == folder.staged:  # claiming it would move the snapshots of all other records
        raise OutsideError(f"the path {staged!r} names no checkpoint")
    inside(folder.staged, f"{parts[1]}.sending")  # where `claim` moves it
    return claim(snapshot)


def _is_checkpoint(record: FileRecord) -> bool:
    return isinstance(record, Artifact) and record.checkpoint
