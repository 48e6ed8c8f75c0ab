"""Samples system metrics of this machine, where the trainer runs too, for the runs that ask for them.

The metrics have MLflow's names. MLflow's variables set the sampling rate:
``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` (seconds, 10), ``MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING`` (1) and
``MLFLOW_SYSTEM_METRICS_NODE_ID``, which takes precedence over a node's number.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict, deque
from typing import NamedTuple

from tracking_callbacks._delivery.batches import MAX_METRICS, Batch, Point
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.machine import TOTALS, machine_readers
from tracking_callbacks._delivery.session_journal import SessionJournal
from tracking_callbacks._delivery.stores.store import Store

__all__ = ["RunSystemMetrics", "Sample", "SystemSampler"]

logger = logging.getLogger(__name__)

INTERVAL_VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
SAMPLES_VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"
NODE_VARIABLE = "MLFLOW_SYSTEM_METRICS_NODE_ID"

_INTERVAL_SECONDS = 10.0
_FIRST_SECONDS = 1.0  # so that a short run gets a sample too
_KEPT_SAMPLES = 8640  # a day at the default rate, in case the store is down


class Sample(NamedTuple):
    """Means over one period.

    Attributes:
        number: Counts the samples of this process.
        timestamp: End of the period, milliseconds since the epoch.
        values: Without the prefix ``system/``; the ``network_…`` megabytes count from the sampler's start.
    """

    number: int
    timestamp: int
    values: dict[str, float]


class SystemSampler:
    """Samples CPU, memory, disk, network and GPUs in a separate thread.

    There is one for the whole process, because psutil measures the CPU load since the previous call.
    """

    def __init__(self) -> None:
        self.seconds = _positive(INTERVAL_VARIABLE, _INTERVAL_SECONDS)
        self._samples_each = max(1, int(_positive(SAMPLES_VARIABLE, 1)))
        self._kept: deque[Sample] = deque(maxlen=_KEPT_SAMPLES)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start sampling if it has not started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)
            self._thread.start()

    def since(self, number: int) -> list[Sample]:
        """Return the samples from `number` on."""
        return [sample for sample in tuple(self._kept) if sample.number >= number]

    def period(self) -> float:
        """Return the seconds between two samples."""
        return self.seconds * self._samples_each

    def _sample(self) -> None:
        try:
            readers = machine_readers()
        except ImportError as error:
            logger.warning("no system metrics: %s", error)
            return
        pause = threading.Event()
        number = 0
        while True:
            readings = defaultdict[str, list[float]](list)
            for _ in range(self._samples_each):
                pause.wait(self.seconds if number else min(_FIRST_SECONDS, self.seconds))
                for read in readers:
                    for name, value in read():
                        readings[name].append(value)
            means = {
                name: values[-1] if name.startswith(TOTALS) else round(sum(values) / len(values), 1)
                for name, values in readings.items()
            }
            self._kept.append(Sample(number, time.time_ns() // 1_000_000, means))
            number += 1


class RunSystemMetrics:
    """The system metrics of one run.

    Steps count periods since the run's start time in the store, so that a resumed run continues after its earlier
    samples. After a failure a sample is sent again with its original time. Samples that are unsent when this process
    dies are lost, which breaks no promise because no ``log_*`` call had accepted them.
    """

    def __init__(self, sampler: SystemSampler, store: Store) -> None:
        self._sampler = sampler
        self._store = store
        self._next = 0
        self._run_start: int | None = None
        self._sums_before: dict[str, float] = {}

    def send(self, session: SessionJournal, run_id: str) -> None:
        """Send the samples that were taken while `session` lasted, if it asks for them.

        Raises:
            DeliveryError: The store did not accept them this time.
        """
        if not session.opened.system_metrics:
            return
        finished = session.finished()
        if not finished:
            self._sampler.start()
        last = session.ending().timestamp if finished else session.open_until()
        samples = [sample for sample in self._sampler.since(self._next) if finished or sample.timestamp <= last]
        if not samples:
            return
        points = [point for sample in samples for point in self._points(sample, session, last, run_id)]
        for first in range(0, len(points), MAX_METRICS):
            try:
                self._store.log_batch(run_id, Batch(metrics=points[first : first + MAX_METRICS]))
            except Refused as error:
                self._store.check_active(run_id)
                logger.warning("run %s: the store refused system metrics: %s", run_id, error)
        self._next = samples[-1].number + 1

    def _points(self, sample: Sample, session: SessionJournal, last: int, run_id: str) -> list[Point]:
        sums = {key: value for key, value in sample.values.items() if key.startswith(TOTALS)}
        if not session.opened.timestamp <= sample.timestamp <= last:
            return []
        if not self._sums_before:
            # As MLflow does, count only this run's traffic: from the sample before it, or the sampler's start.
            earlier = [one for one in self._sampler.since(0) if one.timestamp < session.opened.timestamp]
            self._sums_before = {key: earlier[-1].values[key] if earlier else 0.0 for key in sums}
        if self._run_start is None:
            self._run_start = int(self._store.run(run_id).start_time)
        node = os.environ.get(NODE_VARIABLE) or session.opened.node
        prefix = f"system/{node}/" if node else "system/"
        step = round((sample.timestamp - self._run_start) / 1000 / self._sampler.period())
        return [
            Point(prefix + key, value - self._sums_before.get(key, 0.0), sample.timestamp, step)
            for key, value in sample.values.items()
        ]


def _positive(variable: str, default: float) -> float:
    try:
        value = float(os.environ.get(variable) or default)
    except ValueError:
        value = 0.0
    if value > 0:
        return value
    logger.warning("%s: expected a number above 0, got %r; using %g", variable, os.environ[variable], default)
    return default
