"""What a journal holds: one frozen struct per kind of record, encoded as msgpack.

msgpack and not JSON: NaN and the infinities must survive. Fields are only ever added at the end, with a default, so
that a journal of an older version stays readable. Times are wall-clock milliseconds since the epoch, taken in the
training process.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from tracking_callbacks._journal.owner import Owner

__all__ = [
    "Artifact",
    "Automatic",
    "Dataset",
    "Drawing",
    "DrawingKind",
    "Intent",
    "Metrics",
    "Model",
    "Params",
    "Record",
    "RunEnded",
    "SessionOpened",
    "Status",
    "Store",
    "Tags",
    "count_entries",
    "decode",
    "encode",
    "now_ms",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
Intent = Literal["own", "join", "amend"]
DrawingKind = Literal["learning_curves", "confusion_matrix", "episodes", "equity"]


class Store(msgspec.Struct, frozen=True, array_like=True):
    """Where a run is to be delivered.

    Attributes:
        uri: Tracking URI with its credentials masked: secrets never reach a journal.
        working_folder: Absolute folder in which MLflow resolves a relative artifact root.
        registry_uri: URI of the model registry with its credentials masked; None: the tracking store's own.
    """

    uri: str
    working_folder: str
    registry_uri: str | None = None

    def same_as(self, other: Store) -> bool:
        """Return whether one delivery process can serve both."""
        return (self.uri, self.registry_uri) == (other.uri, other.registry_uri)


class SessionOpened(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """First record of every journal: one process writing to one run.

    Attributes:
        session: Start of the session in nanoseconds since the epoch; the newest own session of a run decides its
            status.
        intent: ``own``: this session sets the run's status. ``join``: somebody else does. ``amend``: the run has
            ended and more is added to it.
        run_id: The server's id, where it is known already.
        resumed: The run was begun by an earlier session: look for it before creating it.
        parent_key: Key of the parent run, where that is a run of this package.
        system_metrics: Sample this machine for the run, as long as the session lasts.
    """

    run_key: str
    session: int
    timestamp: int
    owner: Owner
    store: Store
    experiment: str
    intent: Intent = "own"
    run_id: str | None = None
    run_name: str | None = None
    parent_key: str | None = None
    parent_id: str | None = None
    tags: dict[str, str] = {}
    resumed: bool = False
    system_metrics: bool = False


class Params(msgspec.Struct, frozen=True, array_like=True, tag="params"):
    """Names and texts of params."""

    params: dict[str, str]


class Metrics(msgspec.Struct, frozen=True, array_like=True, tag="metrics"):
    """Points of several metrics at one step and time."""

    timestamp: int
    step: int
    metrics: dict[str, float]


class Tags(msgspec.Struct, frozen=True, array_like=True, tag="tags"):
    """Names and texts of tags."""

    tags: dict[str, str]


class Artifact(msgspec.Struct, frozen=True, array_like=True, tag="artifact"):
    """A file or folder, snapshotted under the run folder.

    Attributes:
        staged: Path relative to the run folder.
        artifact_path: Folder within the run's artifacts, None for their root.
        table: It is a table that the UI is to show as one.
        checkpoint: Its snapshot may have been dropped to make room for later ones, see `checkpoints`.
    """

    staged: str
    artifact_path: str | None = None
    table: bool = False
    checkpoint: bool = False


class Dataset(msgspec.Struct, frozen=True, array_like=True, tag="dataset"):
    """A dataset input; `schema` and `profile` are JSON texts as MLflow stores them."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None
    context: str | None = None


class Model(msgspec.Struct, frozen=True, array_like=True, tag="model"):
    """An MLmodel folder, snapshotted under the run folder.

    Attributes:
        record_key: Identifies this record on the server, so that a replay makes no second model or version.
        step: Training step at which the model was logged; None stands for the run's last.
    """

    timestamp: int
    record_key: str
    staged: str
    name: str
    registered_model_name: str | None = None
    aliases: tuple[str, ...] = ()
    step: int | None = None
    tags: dict[str, str] = {}


class Automatic(msgspec.Struct, frozen=True, array_like=True, tag="automatic"):
    """What this package records about a run unasked; not an entry of the user's.

    Attributes:
        tags: Tags to set.
        staged: Path, relative to the run folder, of a folder whose content belongs to the run's artifacts.
        artifact_path: Where in the artifacts that content goes.
    """

    tags: dict[str, str] = {}
    staged: str | None = None
    artifact_path: str | None = None


class Drawing(msgspec.Struct, frozen=True, array_like=True, tag="drawing"):
    """A picture that delivery is to draw of the run; not an entry of the user's.

    Attributes:
        kind: What to draw, see `delivery.drawings`.
        artifact_path: Folder within the run's artifacts that it goes to.
        staged: Path of its data relative to the run folder; None: it is drawn from the run's points.
        captions: What is to be said in it.
    """

    kind: DrawingKind
    artifact_path: str
    staged: str | None = None
    captions: dict[str, str] = {}


class RunEnded(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Last record of a journal. `status` is None where the session does not decide it."""

    timestamp: int
    status: Status | None


Record = SessionOpened | Params | Metrics | Tags | Artifact | Dataset | Model | Automatic | Drawing | RunEnded


def count_entries(record: Record) -> int:
    """Return how many things of the user's a record holds: metric points, params, tags, files, models."""
    if type(record) is Metrics:  # nearly all of them: a match takes a microsecond to come to it
        return len(record.metrics)
    match record:
        case Metrics(metrics=mapping) | Params(params=mapping) | Tags(tags=mapping):
            return len(mapping)
        case SessionOpened() | Automatic() | Drawing() | RunEnded():
            return 0
        case _:
            return 1


def now_ms() -> int:
    """Return the present wall-clock time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
