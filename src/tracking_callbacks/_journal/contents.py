"""Reads what a run's journals say: its params, last values and status, also while no store can be reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tracking_callbacks._journal.frames import read_last_words, read_records
from tracking_callbacks._journal.layout import RunFolder
from tracking_callbacks._journal.pending import read_opened
from tracking_callbacks._journal.records import (
    ERROR_TAG,
    Automatic,
    DeleteTag,
    Metrics,
    Model,
    Params,
    RunEnded,
    SessionOpened,
    Tags,
)

__all__ = ["RunContents", "read_contents"]


@dataclass(slots=True)
class RunContents:
    """What the journals of a run hold.

    Attributes:
        started: When it began, in milliseconds since the epoch; 0 if no journal can be read.
        status: How its newest session has ended; ``RUNNING`` where it has not.
        params: Params by name, the first value of each.
        tags: Tags by name.
        metrics: Step and value of the last point of each metric.
        points: Number of points.
        models: Names of the models that were logged.
    """

    started: int = 0
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    points: int = 0
    models: list[str] = field(default_factory=list)

    @property
    def error(self) -> str:
        """The last line of the traceback that has ended the run; empty if none did."""
        return self.tags.get(ERROR_TAG, "")

    def add(self, record: object) -> None:
        """Take one record in; records must come in the order of the journals."""
        match record:
            case SessionOpened():
                self.started = self.started or record.timestamp
                self.status = "RUNNING"
                self.tags |= record.tags
            case Params(params=params):
                self.params = params | self.params
            case Tags(tags=tags) | Automatic(tags=tags):
                self.tags |= tags
            case DeleteTag(name=name):
                self.tags.pop(name, None)
            case Metrics(step=step, metrics=metrics):
                self.metrics |= {name: (step, value) for name, value in metrics.items()}
                self.points += len(metrics)
            case Model(name=name):
                self.models.append(name)
            case RunEnded(status=status):
                self.status = status or self.status


def read_contents(folder: RunFolder) -> RunContents:
    """Return what the journals of `folder` hold so far."""
    contents = RunContents()
    for journal in folder.journals():
        if read_opened(journal) is not None:
            _read(journal, contents)
    return contents


def _read(journal: Path, contents: RunContents) -> None:
    try:
        for record, _ in read_records(journal):
            contents.add(record)
        contents.add(read_last_words(journal))
    except FileNotFoundError:  # it has just been delivered
        return
