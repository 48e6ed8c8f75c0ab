"""Finds out how much of a journal the store has although nothing says so: the delivery state was lost, or is old.

MLflow takes about fifteen times as long for a point that it already has as for a new one, so asking is cheaper than
sending a long journal again.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tracking_callbacks._delivery.batches import MAX_METRICS, Point
from tracking_callbacks._journal.records import Metrics, Params, Record, Tags, count_entries

__all__ = ["Delivered", "delivered_before"]

_LARGEST = 1.7976931348623157e308  # what MLflow stores for an infinity
_LEAST_EVIDENCE = 100

Records = Callable[[], Iterable[tuple[Record, int]]]


@dataclass(frozen=True, slots=True)
class Delivered:
    """How far a journal is known to be delivered.

    Attributes:
        end: Journal offset.
        entries: Number of the user's entries up to there.
    """

    end: int
    entries: int


def delivered_before(
    records: Records, latest: Iterable[Point], history: Callable[[str], list[Point]]
) -> Delivered | None:
    """Return how far the store has a journal's metrics, params and tags; None if that is not certain.

    Delivery sends a journal in its order, in batches of at most `MAX_METRICS` points, and sends one only when the
    store has taken the one before. So if the store has a point, it has everything before the last `MAX_METRICS` points
    up to it. Another process that writes to the same run could have logged the same point by chance; therefore at least
    a hundred points of that metric must be in the store.

    Args:
        records: Returns the records from the acknowledged offset on, each with the offset of its end.
        latest: The last point of each metric in the store.
        history: Returns the first points of a metric in the store, sorted by time and step.
    """
    known = {_identity(point) for point in latest}
    ends, entries, counts = array("q"), array("q"), array("q")  # up to each record: offset, entries, points
    found: tuple[int, str] | None = None
    number = points = 0
    for record, end in records():
        if isinstance(record, Metrics):
            points += len(record.metrics)
            for key, value in record.metrics.items():
                if _identity(Point(key, value, record.timestamp, record.step)) in known:
                    found = len(ends), key
        number += (
            count_entries(record) if isinstance(record, Metrics | Params | Tags) else 0
        )  # files have their own lane
        ends.append(end)
        entries.append(number)
        counts.append(points)
    if found is None:
        return None
    last, key = found
    safe = counts[last] - MAX_METRICS
    place = bisect_right(counts, safe, hi=last) - 1
    if place < 0 or not _has_all(records, key, ends[last], history(key)):
        return None
    return Delivered(ends[place], entries[place])


def _has_all(records: Records, key: str, end: int, stored: list[Point]) -> bool:
    """Return whether the store's first points of a metric are those that the journal holds up to `end`."""
    if len(stored) < _LEAST_EVIDENCE:
        return False
    there = {_identity(point) for point in stored}
    newest = stored[-1].timestamp
    ours = 0
    for record, at in records():
        if at > end:
            break
        if isinstance(record, Metrics) and key in record.metrics and record.timestamp < newest:
            if _identity(Point(key, record.metrics[key], record.timestamp, record.step)) not in there:
                return False
            ours += 1
    return ours >= _LEAST_EVIDENCE


def _identity(point: Point) -> tuple[str, float | None, int, int]:
    value = None if math.isnan(point.value) else max(-_LARGEST, min(point.value, _LARGEST))
    return point.key, value, point.timestamp, point.step
