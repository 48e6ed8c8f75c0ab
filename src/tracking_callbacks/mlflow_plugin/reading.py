"""Reads what journals hold of a run, and lays what the store does not have yet over the store's answer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec
from mlflow.entities import (
    Dataset,
    DatasetInput,
    FileInfo,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunTag,
)

from tracking_callbacks._journal import calls, records
from tracking_callbacks._journal.frames import read_chunk, read_records
from tracking_callbacks._journal.layout import RunFolder, RunState, SessionState, session_name
from tracking_callbacks._journal.pending import read_opened

__all__ = [
    "CONTEXT_TAG",
    "RUN_KEY_TAG",
    "RUN_NAME_TAG",
    "JournalView",
    "RunView",
    "StagedFile",
    "begins",
    "listed",
    "overlaid",
]

CONTEXT_TAG = "mlflow.data.context"
RUN_NAME_TAG = "mlflow.runName"
RUN_KEY_TAG = "tracking_callbacks.run_key"  # delivery gives each run its key
_SESSION_TAG = "tracking_callbacks.session"  # delivery says by it which session decides the status
_LARGEST = 1.7976931348623157e308  # what MLflow's stores keep in place of an infinity


def shown_value(value: float) -> float:
    """Return a metric's value as a store of MLflow's gives it back."""
    return math.copysign(_LARGEST, value) if math.isinf(value) else value


@dataclass(slots=True)
class JournalView:
    """One journal, as far as it has been read; `refresh` reads on.

    Attributes:
        start: Where the reading has begun.
        tags: Of each tag the offset of its last record's end, and its text; None means that it was deleted.
        calls: Calls, each with the offset of its end and the snapshot that it uploads.
    """

    path: Path
    opened: records.SessionOpened
    start: int = 0
    offset: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    artifacts: list[tuple[int, records.Artifact]] = field(default_factory=list)
    datasets: list[tuple[int, records.Dataset]] = field(default_factory=list)
    calls: list[tuple[int, calls.Call, str | None]] = field(default_factory=list)
    ended: records.RunEnded | None = None

    def refresh(self) -> None:
        """Read what has been written since."""
        at_end = False
        while not at_end:
            try:
                chunk = read_chunk(self.path, self.offset, complete=False)
            except FileNotFoundError:  # it is delivered
                return
            for record, end in chunk.records:
                self._take(record, end)
            self.offset, at_end = chunk.end, chunk.at_end or not chunk.records

    def _take(self, record: records.Record, end: int) -> None:
        match record:
            case records.Metrics(timestamp=timestamp, step=step, metrics=points):
                for key, value in points.items():
                    self.metrics[key] = later(self.metrics.get(key), Metric(key, shown_value(value), timestamp, step))
            case records.Params(params=params):
                self.params |= params
            case records.Tags(tags=tags) | records.Automatic(tags=tags):
                self.tags |= {key: (end, text) for key, text in tags.items()}
            case records.DeleteTag(name=name):
                self.tags[name] = end, None
            case records.Artifact():
                self.artifacts.append((end, record))
            case records.Dataset():
                self.datasets.append((end, record))
            case records.StoreCall(call=call, staged=staged):
                with contextlib.suppress(msgspec.MsgspecError):  # of a newer version
                    self.calls.append((end, calls.decode_call(call), staged))
            case records.RunEnded():
                self.ended = record
            case _:
                pass


def later(one: Metric | None, other: Metric) -> Metric:
    """Return the last of two points of a metric, by MLflow's order."""
    if one is None:
        return other
    return max(one, other, key=lambda point: (point.step, point.timestamp, not math.isnan(point.value), point.value))


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that waits for its upload: its path on this disk, and its place among the artifacts."""

    path: Path
    place: str


class RunView:
    """What one folder of the journal root holds of a run, and what of it the store has.

    Args:
        folder: The folder.
        known: Views of journals that were read before, by their paths; changed in place.
        whole: Read the journals from their beginning, because the store does not answer. Otherwise what it has
            acknowledged is passed over, which may be millions of points.
    """

    def __init__(self, folder: RunFolder, known: dict[Path, JournalView], *, whole: bool = False) -> None:
        self.folder = folder
        self.state = folder.read_state() or RunState()  # before the store is asked and before the journals are read
        self.views: list[JournalView] = []
        for journal in folder.journals():
            view = known.get(journal)
            if view is None or (whole and view.start):
                if (opened := read_opened(journal)) is None:
                    continue
                done = self.state.sessions.get(session_name(journal), SessionState())
                start = 0 if whole else min(done.points, done.files)
                view = known[journal] = JournalView(journal, opened, start, start)
            view.refresh()
            self.views.append(view)

    def done(self, view: JournalView) -> SessionState:
        """Return how far a journal is delivered."""
        return self.state.sessions.get(session_name(view.path), SessionState())

    def pending_points(self, key: str, *, whole: bool) -> Iterator[Metric]:
        """Yield the points of a metric that the store may lack; all of them where `whole` is true."""
        for view in self.views:
            if key not in view.metrics:
                continue
            for record, _ in read_records(view.path, 0 if whole else self.done(view).points):
                if isinstance(record, records.Metrics) and key in record.metrics:
                    yield Metric(key, shown_value(record.metrics[key]), record.timestamp, record.step)

    def pending_calls(self) -> Iterator[tuple[calls.Call, str | None]]:
        """Yield the calls that the store has not acknowledged, in order."""
        for view in self.views:
            files = self.done(view).files
            yield from ((call, staged) for end, call, staged in view.calls if end > files)

    def all_calls(self) -> Iterator[calls.Call]:
        """Yield all calls, in order."""
        for view in self.views:
            yield from (call for _, call, _ in view.calls)

    def staged_artifacts(self) -> Iterator[StagedFile]:
        """Yield the files of the run's artifacts that wait for their upload, the oldest first."""
        for view in self.views:
            for end, record in view.artifacts:
                if end > self.done(view).files:
                    yield from _files(self.folder, record.staged, record.artifact_path or "")

    def staged_model_files(self, model_ids: Collection[str]) -> Iterator[StagedFile]:
        """Yield the files of a logged model that wait for their upload, the oldest first."""
        for call, staged in self.pending_calls():
            if isinstance(call, calls.ModelFiles) and call.model_id in model_ids and staged is not None:
                yield from _files(self.folder, staged, "")


def _files(folder: RunFolder, staged: str, place: str) -> Iterator[StagedFile]:
    source = folder.path / staged
    root = PurePosixPath(place)
    if source.is_file():
        yield StagedFile(source, str(root / source.name))
        return
    root = root if source.parent == folder.staged else root / source.name
    for path in sorted(source.rglob("*")):
        if path.is_file():
            yield StagedFile(path, str(root / path.relative_to(source).as_posix()))


def listed(files: Sequence[StagedFile], below: str | None) -> list[FileInfo]:
    """Return what lies directly below a folder of the artifacts."""
    prefix = f"{below.strip('/')}/" if below and below.strip("/") else ""
    found: dict[str, FileInfo] = {}
    for file in files:
        if not file.place.startswith(prefix):
            continue
        name, _, rest = file.place.removeprefix(prefix).partition("/")
        try:
            size = None if rest else file.path.stat().st_size
        except FileNotFoundError:  # it has just been uploaded
            continue
        found[prefix + name] = FileInfo(prefix + name, bool(rest), size)
    return list(found.values())


def overlaid(run_id: str, base: Run | None, views: Sequence[RunView], artifact_uri: str) -> Run:
    """Return a run as the program sees it: the store's answer with what the journals hold beyond it.

    Args:
        run_id: The id that the program knows the run by.
        base: The store's answer. None means that there is none; the journals then hold the run's beginning.
        views: The folders that hold anything of the run.
        artifact_uri: Where the program reads and writes its artifacts.
    """
    metrics = {one.key: one for one in base.data._metric_objs} if base is not None else {}
    params = dict(base.data.params) if base is not None else {}
    tags = dict(base.data.tags) if base is not None else {}
    datasets = list(base.inputs.dataset_inputs) if base is not None and base.inputs else []
    inputs = list(base.inputs.model_inputs) if base is not None and base.inputs else []
    outputs = list(base.outputs.model_outputs) if base is not None and base.outputs else []
    info = base.info if base is not None else None
    status, end_time = (info.status, info.end_time) if info is not None else ("RUNNING", None)
    decides = tags.get(_SESSION_TAG, "")
    newest = int(decides) if decides.isdecimal() else 0
    for holder, view in [(one, view) for one in views for view in one.views]:
        done = holder.done(view)
        if info is None and view.opened.intent == "own" and not view.opened.resumed:
            info = _begun(run_id, view.opened)
            tags = dict(view.opened.tags) | tags
        for key, point in view.metrics.items():
            metrics[key] = later(metrics.get(key), point)
        params = view.params | params
        for key, (end, text) in view.tags.items():
            if end > done.points or base is None:
                if text is None:
                    tags.pop(key, None)
                else:
                    tags[key] = text
        for _, one in view.datasets:
            if (one.name, one.digest) not in {(known.dataset.name, known.dataset.digest) for known in datasets}:
                datasets.append(_dataset_input(one))
        for _, call, _ in view.calls:
            if isinstance(call, calls.UseModel) and not call.run_id:
                model_id = holder.state.made.get(call.model_id) or call.model_id
                if call.step is None and all(one.model_id != model_id for one in inputs):
                    inputs.append(LoggedModelInput(model_id))
                if call.step is not None and all(one.model_id != model_id for one in outputs):
                    outputs.append(LoggedModelOutput(model_id, call.step))
        if view.opened.intent == "own" and not done.closed and view.opened.session >= newest:
            newest = view.opened.session
            ended = view.ended
            if ended is None or ended.status is None:
                status = "RUNNING"
            else:
                status, end_time = ended.status, ended.timestamp
    assert info is not None
    shown = RunInfo(
        run_id=run_id,
        experiment_id=info.experiment_id,
        user_id=info.user_id or "",
        status=status,
        start_time=info.start_time,
        end_time=end_time,
        lifecycle_stage=info.lifecycle_stage,
        artifact_uri=artifact_uri,
        run_name=tags.get(RUN_NAME_TAG, info.run_name),
    )
    data = RunData(
        metrics=list(metrics.values()),
        params=[Param(*item) for item in params.items()],
        tags=[RunTag(*item) for item in tags.items()],
    )
    return Run(shown, data, RunInputs(datasets, inputs), RunOutputs(outputs))


def begins(views: Sequence[RunView]) -> bool:
    """Return whether journals hold the beginning of their run, so that they say all there is to say of it."""
    return any(view.opened.intent == "own" and not view.opened.resumed for one in views for view in one.views)


def _begun(run_id: str, opened: records.SessionOpened) -> RunInfo:
    return RunInfo(
        run_id=run_id,
        experiment_id=opened.experiment_id or "0",
        user_id=opened.tags.get("mlflow.user", "unknown"),
        status="RUNNING",
        start_time=opened.timestamp,
        end_time=None,
        lifecycle_stage="active",
        run_name=opened.run_name,
    )


def _dataset_input(record: records.Dataset) -> DatasetInput:
    tags = record.tags | ({CONTEXT_TAG: record.context} if record.context else {})
    dataset = Dataset(
        name=record.name,
        digest=record.digest,
        source_type=record.source_type,
        source=record.source,
        schema=record.schema,
        profile=record.profile,
    )
    return DatasetInput(dataset, [InputTag(*item) for item in tags.items()])
