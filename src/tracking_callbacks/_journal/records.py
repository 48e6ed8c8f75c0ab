"""What a journal holds: one frozen struct per kind of record, encoded as msgpack.

It is msgpack rather than JSON because NaN and the infinities must survive. New fields are only ever added at the end,
with a default, so that journals of older versions stay readable. Times are wall-clock milliseconds since the epoch,
taken in the training process.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from tracking_callbacks._journal.owner import Owner

__all__ = [
    "ERROR_TAG",
    "Artifact",
    "Automatic",
    "Dataset",
    "DeleteModel",
    "DeleteTag",
    "Describe",
    "Drawing",
    "DrawingKind",
    "Intent",
    "Metrics",
    "Model",
    "Params",
    "Promote",
    "Record",
    "RunEnded",
    "SessionOpened",
    "Status",
    "StoreAddress",
    "StoreCall",
    "Tags",
    "count_entries",
    "decode",
    "encode",
    "now_ms",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
Intent = Literal["own", "join", "amend", "none"]
ERROR_TAG = "tracking_callbacks.error"  # of a run that has failed: the last line of its traceback
TRIALS_TAG = "tracking_callbacks.trials"  # of the run of a search: how many there are
PRUNED_TAG = "tracking_callbacks.pruned"  # of a trial that its search has given up
DrawingKind = Literal[
    "learning_curves",
    "confusion_matrix",
    "classifier_curves",
    "regression",
    "scores",
    "episodes",
    "equity",
    "tear_sheet",
    "importance",
    "study",
]


class StoreAddress(msgspec.Struct, frozen=True, array_like=True):
    """The store that a run is delivered to.

    Attributes:
        uri: Tracking URI with its credentials masked: secrets never reach a journal.
        working_folder: Absolute folder in which MLflow resolves a relative artifact root.
        registry_uri: URI of the model registry with its credentials masked. None means the tracking store's registry.
    """

    uri: str
    working_folder: str
    registry_uri: str | None = None

    def same_as(self, other: StoreAddress) -> bool:
        """Return whether one delivery process can serve both."""
        return (self.uri, self.registry_uri) == (other.uri, other.registry_uri)


class AlertRule(msgspec.Struct, frozen=True, array_like=True):
    """A condition that the user wants to be told of, and how; see `Alert`."""

    when: str
    notify: tuple[str, ...]


class SessionOpened(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """First record of every journal: one process writing to one run.

    Attributes:
        session: Start of the session in nanoseconds since the epoch; the newest ``own`` session of a run decides its
            status.
        intent: ``own``: this session sets the run's status. ``join``: another process sets it. ``amend``: the run has
            ended and this session adds to it. ``none``: the journal belongs to no run, and holds calls alone.
        run_id: The server's id, if it is already known.
        resumed: An earlier session began the run: look for it before creating it.
        parent_key: Key of the parent run, if this package created that; with the intent ``join``, of the run itself.
        system_metrics: Sample this machine's system metrics for as long as the session lasts.
        resumed_at: Training step that a resumed session continues from, where it is known.
        experiment_id: The store's id of the experiment. Where it is given, `experiment` is only a label.
        alerts: What the user wants to be told of.
        node: What this machine is called in the names of its system metrics, where several train together.
    """

    run_key: str
    session: int
    timestamp: int
    owner: Owner
    store: StoreAddress
    experiment: str
    intent: Intent = "own"
    run_id: str | None = None
    run_name: str | None = None
    parent_key: str | None = None
    parent_id: str | None = None
    tags: dict[str, str] = {}
    resumed: bool = False
    system_metrics: bool = False
    resumed_at: int | None = None
    experiment_id: str | None = None
    alerts: tuple[AlertRule, ...] = ()
    node: str = ""


class Params(msgspec.Struct, frozen=True, array_like=True, tag="params"):
    """Params: text by name."""

    params: dict[str, str]


class Metrics(msgspec.Struct, frozen=True, array_like=True, tag="metrics"):
    """Values of several metrics at one step and time."""

    timestamp: int
    step: int
    metrics: dict[str, float]


class Tags(msgspec.Struct, frozen=True, array_like=True, tag="tags"):
    """Tags: text by name."""

    tags: dict[str, str]


class DeleteTag(msgspec.Struct, frozen=True, array_like=True, tag="untag"):
    """Deletes a tag."""

    name: str


class Artifact(msgspec.Struct, frozen=True, array_like=True, tag="artifact"):
    """A file or folder, snapshotted under the run folder.

    Attributes:
        staged: Path relative to the run folder.
        artifact_path: Folder within the run's artifacts. None means their root.
        table: The UI should show the file as a table.
        checkpoint: The snapshot may have been dropped to make room for later ones, see `checkpoints`.
        held: Files of the snapshot that are hard links, by their paths relative to its holder: size in bytes and time
            of the last change (ns since the epoch) when they were logged.
    """

    staged: str
    artifact_path: str | None = None
    table: bool = False
    checkpoint: bool = False
    held: dict[str, tuple[int, int]] = {}


class Dataset(msgspec.Struct, frozen=True, array_like=True, tag="dataset"):
    """A dataset input; `schema` and `profile` are JSON texts as MLflow stores them, `tags` those of the input."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None
    context: str | None = None
    tags: dict[str, str] = {}


class Model(msgspec.Struct, frozen=True, array_like=True, tag="model"):
    """An MLmodel folder, snapshotted under the run folder.

    Attributes:
        record_key: Identifies this record on the server, so that a replay creates no second model or version.
        step: Training step at which the model was logged. None means the run's last step.
        data: Name and digest of the dataset that an evaluation's metrics are measured on, by what their names begin
            with: ``eval`` for ``eval/f1``, ``eval_news`` for ``eval/news/f1``.
        checkpoint: The snapshot may have been dropped to make room for later ones, see `checkpoints`.
    """

    timestamp: int
    record_key: str
    staged: str
    name: str
    registered_model_name: str | None = None
    aliases: tuple[str, ...] = ()
    step: int | None = None
    tags: dict[str, str] = {}
    data: dict[str, tuple[str, str]] = {}
    checkpoint: bool = False


class DeleteModel(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """Takes back a logged model that newer checkpoints have replaced; not one of the user's entries.

    Attributes:
        record_key: That of the model's record.
    """

    record_key: str


class Automatic(msgspec.Struct, frozen=True, array_like=True, tag="automatic"):
    """What this package records about a run automatically; it does not count as one of the user's entries.

    Attributes:
        tags: Tags to set.
        staged: Path, relative to the run folder, of a folder whose content becomes artifacts of the run.
        artifact_path: Folder within the run's artifacts for that content.
    """

    tags: dict[str, str] = {}
    staged: str | None = None
    artifact_path: str | None = None


class Drawing(msgspec.Struct, frozen=True, array_like=True, tag="drawing"):
    """A picture that delivery draws of the run; it does not count as one of the user's entries.

    Attributes:
        kind: What to draw, see `_delivery.pictures.drawing`.
        artifact_path: Folder within the run's artifacts for the picture.
        staged: Path of its data relative to the run folder. None means that it is drawn from the run's points.
        captions: Texts for the picture, by name.
    """

    kind: DrawingKind
    artifact_path: str
    staged: str | None = None
    captions: dict[str, str] = {}


class Promote(msgspec.Struct, frozen=True, array_like=True, tag="promote"):
    """Lets an alias move to a version that this run has registered, if it is better than the one that holds it.

    Attributes:
        record_key: That of the model's record.
        name: The registered model.
        alias: The alias.
        by: Name of the metric that is compared.
        greater_is_better: Whether the higher value is the better one.
        minimum_gain: How much better the version must be.
        challenger: Alias for the version that loses.
        step: Step of the model. None means the run's last value of the metric.
        data: Digest of the data that the metric was measured on. None means that it is unknown.
    """

    record_key: str
    name: str
    alias: str
    by: str
    greater_is_better: bool
    minimum_gain: float = 0.0
    challenger: str | None = None
    step: int | None = None
    data: str | None = None


class Describe(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """Asks for the descriptions of the run and of the versions that it has registered; not one of the user's entries.

    Attributes:
        status: How the run ends. None means that it goes on.
    """

    timestamp: int
    status: Status | None = None


class StoreCall(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """A call of MLflow's that a program has made through the plugin.

    Attributes:
        call: The call, as `calls.encode_call` has encoded it: only those who need it import `calls`.
        staged: Path, relative to the run folder, of the folder whose content it uploads.
    """

    call: msgspec.Raw
    staged: str | None = None


class RunEnded(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Last record of a journal. `status` is None if the session does not decide it."""

    timestamp: int
    status: Status | None


Record = (
    SessionOpened
    | Params
    | Metrics
    | Tags
    | DeleteTag
    | Artifact
    | Dataset
    | Model
    | Automatic
    | Drawing
    | DeleteModel
    | Promote
    | Describe
    | StoreCall
    | RunEnded
)


def count_entries(record: Record) -> int:
    """Return how many of the user's entries a record holds: metric points, params, tags, files, models."""
    if type(record) is Metrics:  # nearly all records are; the match below takes a microsecond to get there
        return len(record.metrics)
    match record:
        case Metrics(metrics=mapping) | Params(params=mapping) | Tags(tags=mapping):
            return len(mapping)
        case SessionOpened() | Automatic() | Drawing() | DeleteModel() | Describe() | RunEnded():
            return 0
        case _:
            return 1


def now_ms() -> int:
    """Return the current wall-clock time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
