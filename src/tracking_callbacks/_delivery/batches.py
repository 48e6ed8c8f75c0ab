"""Coalesce records into the fewest ``log_batch`` calls that MLflow accepts; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tracking_callbacks._journal.records import Automatic, DeleteTag, Metrics, Params, Record, Tags

__all__ = ["MAX_METRICS", "Batch", "Point", "coalesce"]

# mlflow.utils.validation: MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH, MAX_ENTITIES_PER_BATCH. MAX_BYTES leaves
# room for JSON's overhead below MLflow's limit of 1 MB per request.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_TAGS = 100
MAX_ENTITIES = 1000
MAX_BYTES = 800_000
_ENTITY_BYTES = 110  # keys, punctuation, timestamp and step of one metric in JSON


class Point(NamedTuple):
    """One metric value."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(slots=True)
class Batch:
    """What one ``log_batch`` call carries.

    Attributes:
        end: Journal offset that is acknowledged once the batch has arrived; None in the middle of a record.
        entries: Number of the user's entries that it carries; a tag that is set twice counts as two.
        deleted: Name of the tag that is to be deleted; such a batch carries nothing else.
    """

    metrics: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    end: int | None = None
    size: int = 0
    entries: int = 0
    deleted: str | None = None

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def add(self, entity: Point | tuple[str, str, str]) -> bool:
        """Add a point, or the (kind, name, text) of a param or tag; return False if it must go into the next batch."""
        if isinstance(entity, Point):
            size = _ENTITY_BYTES + len(entity.key)
            full = len(self.metrics) >= MAX_METRICS
        else:
            kind, name, text = entity
            size = _ENTITY_BYTES + len(name) + _json_size(text)
            texts = self.params if kind == "param" else self.tags
            # Two values for one param make MLflow refuse the whole call; of two values for one tag the later one wins.
            full = len(texts) >= (MAX_PARAMS if kind == "param" else MAX_TAGS) or (
                kind == "param" and texts.get(name, text) != text
            )
        if full or (len(self) and (len(self) >= MAX_ENTITIES or self.size + size > MAX_BYTES)):
            return False
        self.size += size
        if isinstance(entity, Point):
            self.metrics.append(entity)
            self.entries += 1
        else:
            texts[name] = text
            self.entries += kind != "automatic"
        return True


def coalesce(records: Iterable[tuple[Record, int]]) -> Iterator[Batch]:
    """Yield batches of the metrics, params and tags among `records` (each with the offset of its end), in order.

    Records of other kinds are skipped. The last batch acknowledges them along with the rest, and may be empty.
    """
    batch = Batch()
    for record, end in records:
        if isinstance(record, DeleteTag):  # after what was set before it, and before what is set after it
            yield batch
            yield Batch(deleted=record.name, end=end, entries=1)
            batch = Batch()
            continue
        for entity in _entities(record):
            if not batch.add(entity):
                yield batch
                batch = Batch()
                batch.add(entity)
        batch.end = end
    if batch.end is not None or len(batch):
        yield batch


def _entities(record: Record) -> Iterator[Point | tuple[str, str, str]]:
    match record:
        case Metrics(timestamp=timestamp, step=step, metrics=metrics):
            for key, value in metrics.items():
                yield Point(key, value, timestamp, step)
        case Params(params=texts):
            for name, text in texts.items():
                yield "param", name, text
        case Tags(tags=texts):
            for name, text in texts.items():
                yield "tag", name, text
        case Automatic(tags=texts):
            for name, text in texts.items():
                yield "automatic", name, text
        case _:
            pass


def _json_size(text: str) -> int:
    return len(text) if text.isascii() else 6 * len(text)  # \uXXXX
