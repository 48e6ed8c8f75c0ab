"""Many trainers at once against one store: ``python tests/faults/scale.py [--sqlite] [TRAINERS …]``.

The store is a server with PostgreSQL, or with ``--sqlite`` the local database, which delivery reaches through MLflow.

Each trainer is a process that logs ten records a second, of five metrics each, for half a minute. All share one journal
root. It prints one line per number of trainers, and fails where a point is lost or doubled, a run is not FINISHED, the
server was asked in vain more than it had to be, or a trainer opened more than two connections.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import psutil
from mlflow import MlflowClient

from processes import delivery_processes, free_port
from servers import Server, running_postgres, start_server, stop_server
from tracking_callbacks._delivery.batches import MAX_METRICS, Batch, Point
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.stores.connection import Connection
from tracking_callbacks._delivery.stores.rest import RestStore
from tracking_callbacks._delivery.stores.store import Store

RECORDS, METRICS, SECONDS = 300, 5, 30.0
MOST_CONNECTIONS = 2
# As docs/teams.md advises. A worker handles forty requests at once, and some need two database connections: with
# MLflow's own limit of fifteen, they wait for each other until SQLAlchemy gives up after thirty seconds.
POOL = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "40"}
MOST_MEMORY_MB = 40.0

TRAINER = """
    import os, sys, time
    from tracking_callbacks import Delivery, MLflowTracker
    uri, experiment, journal, number = sys.argv[1:]
    run = MLflowTracker(uri, experiment, record=False, delivery=Delivery(journal_root=journal)).start_run(number)
    print("ready", flush=True)
    sys.stdin.readline()
    spent, written, begun = [], [], time.perf_counter()
    bare = os.open(os.devnull, os.O_WRONLY)
    for record in range({records}):
        due = begun + record * {seconds} / {records}
        time.sleep(max(0.0, due - time.perf_counter()))
        metrics = {{f"metric_{{n}}": record + n / 10 for n in range({metrics})}}
        before = time.perf_counter()
        run.log_metrics(metrics, step=record)
        spent.append(time.perf_counter() - before)
        before = time.perf_counter()
        os.write(bare, repr(metrics).encode())
        written.append(time.perf_counter() - before)
    run.end()
    ended = time.time()
    report = run.flush(600)
    p99 = [sorted(times)[int(0.99 * len(times))] for times in (spent, written)]
    lost = report.rejected + report.dropped
    print(run.run_id, report.complete, lost, *p99, ended, time.time())
"""


def main(counts: list[int], *, sqlite: bool) -> int:
    """Run the sweep and return 0 if every bar was met."""
    return measure_sqlite(counts) if sqlite else measure_server(counts)


def measure_sqlite(counts: list[int]) -> int:
    """Let the trainers deliver to a local database, and say what each of them costs."""
    print(f"{RECORDS} records of {METRICS} metrics from each trainer in {SECONDS:.0f} s; a local SQLite store")
    print(
        "| trainers | points | lost or doubled | not FINISHED | log_metrics / bare write p99, µs | delivery processes "
        "| their memory together, MB | their CPU together, s | raw log_batch, s | flushed after the end, s |"
    )
    print("| --- " * 10 + "|")
    failed = 0
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name)
            uri, journal = f"sqlite:///{folder / 'mlflow.db'}", folder / "journal"
            MlflowClient(uri).search_experiments()  # a store that exists; a new one takes seconds to make
            raw = send_raw(MlflowStore(uri), count)
            told, watch = run_trainers(uri, f"scale {count}", journal, count)
            outcome = Outcome(uri, told)
        print(
            f"| {count} | {count * RECORDS * METRICS} | {outcome.wrong} | {outcome.unfinished} | {outcome.p99} "
            f"| {watch.most_processes} | {watch.memory_together / 1e6:.0f} | {watch.cpu:.0f} | {raw:.1f} "
            f"| {outcome.flushed:.1f} |",
            flush=True,
        )
        failed += bool(outcome.wrong or outcome.unfinished or outcome.flushed > 1.5 * raw)
    return min(failed, 1)


def measure_server(counts: list[int]) -> int:
    """Let the trainers deliver to a server with PostgreSQL."""
    print(
        f"{RECORDS} records of {METRICS} metrics from each trainer in {SECONDS:.0f} s; PostgreSQL, two server workers"
    )
    print(
        "| trainers | points | lost or doubled | not FINISHED | log_metrics / bare write p99, µs | delivery, MB "
        "| connections each "
        "| requests | repeated | raw log_batch, s | flushed after the end, s | server CPU, s |"
    )
    print("| --- " * 12 + "|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        uri = stack.enter_context(running_postgres(folder))
        server = start_server(folder, free_port(), store=uri, workers=2, environment=POOL)
        stack.callback(stop_server, server)
        return 1 if [count for count in counts if not measure(server, folder, count)] else 0


def measure(server: Server, folder: Path, count: int) -> bool:
    """Run `count` trainers, print their line, and return whether the bars were met."""
    store = RestStore.__new__(RestStore)
    store._server = Connection(server.uri)
    raw = send_raw(store, count)
    log = folder / "server.log"
    logged, cpu = log.stat().st_size, server_cpu(server)
    told, watch = run_trainers(server.uri, f"scale {count}", folder / f"journal-{count}", count)
    outcome = Outcome(server.uri, told)
    with open(log, "rb") as content:
        content.seek(logged)
        answers = Counter(re.findall(r'" (\d{3})', content.read().decode(errors="replace")))
    requests, repeated = answers.total(), sum(times for status, times in answers.items() if status >= "429")
    print(
        f"| {count} | {count * RECORDS * METRICS} | {outcome.wrong} | {outcome.unfinished} | {outcome.p99} "
        f"| {watch.memory / 1e6:.0f} | {watch.connections} | {requests} | {repeated} | {raw:.1f} "
        f"| {outcome.flushed:.1f} "
        f"| {server_cpu(server) - cpu:.0f} |",
        flush=True,
    )
    return (
        not (outcome.wrong or outcome.unfinished)
        and watch.memory / 1e6 <= MOST_MEMORY_MB
        and watch.connections <= MOST_CONNECTIONS
        and repeated <= count
        and outcome.flushed <= 1.5 * raw
    )


def run_trainers(uri: str, experiment: str, journal: Path, count: int) -> tuple[list[list[str]], Watch]:
    """Run `count` trainers at once, and return what each of them printed and what was seen of their delivery."""
    code = textwrap.dedent(TRAINER).format(records=RECORDS, metrics=METRICS, seconds=SECONDS)
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri, experiment, str(journal), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        for trainer in trainers:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "ready\n"
        watch = Watch(journal)
        for trainer in trainers:
            assert trainer.stdin is not None
            trainer.stdin.write("\n")
            trainer.stdin.flush()
        told = [trainer.communicate(timeout=900)[0].split() for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()
    watch.stop()
    return told, watch


class Outcome:
    """What the store has of the trainers' runs, and what they measured.

    Attributes:
        wrong: Number of points that are missing, doubled or different.
        unfinished: Number of runs that are not FINISHED or not wholly delivered.
        flushed: Seconds from the end of the last training run until the last one was delivered.
        p99: 99th percentile of a call of `log_metrics` and of a bare write, in microseconds.
    """

    def __init__(self, uri: str, told: list[list[str]]) -> None:
        client = MlflowClient(uri, uri)
        self.wrong = sum(points_wrong(client, run_id) for run_id, *_ in told)
        self.unfinished = sum(
            client.get_run(run_id).info.status != "FINISHED" or complete != "True" or lost != "0"
            for run_id, complete, lost, *_ in told
        )
        self.flushed = max(float(one[6]) for one in told) - max(float(one[5]) for one in told)
        p99, bare = (1e6 * statistics.median(float(one[place]) for one in told) for place in (3, 4))
        self.p99 = f"{p99:.0f} / {bare:.0f}"


def send_raw(store: Store, count: int) -> float:
    """Return the seconds that the same points take in full batches, one after the other, from one process."""
    run_id = store.create_run(store.experiment_id("raw"), start_time=0, tags={}, run_name=f"raw {count}")
    points = [
        Point(f"metric_{n}", record + n / 10, 1_700_000_000_000 + record, record)
        for record in range(RECORDS * count)
        for n in range(METRICS)
    ]
    began = time.perf_counter()
    for first in range(0, len(points), MAX_METRICS):
        store.log_batch(run_id, Batch(metrics=points[first : first + MAX_METRICS]))
    return time.perf_counter() - began


def points_wrong(client: MlflowClient, run_id: str) -> int:
    """Return how many points of a run are missing, doubled or different."""
    wrong = 0
    for n in range(METRICS):
        expected = Counter((record, record + n / 10) for record in range(RECORDS))
        found = Counter((point.step, point.value) for point in client.get_metric_history(run_id, f"metric_{n}"))
        wrong += ((expected - found) + (found - expected)).total()
    return wrong


def server_cpu(server: Server) -> float:
    """Return the CPU seconds that the server's processes have used so far; those of the database are its own."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


class Watch:
    """Looks every second at the delivery processes of a journal root.

    Attributes:
        memory: Most bytes that one of them held.
        memory_together: Most bytes that all of them held at once.
        connections: Most TCP connections that one of them had.
        most_processes: Most of them at once.
    """

    def __init__(self, journal: Path) -> None:
        self.memory = self.memory_together = self.connections = self.most_processes = 0
        self._cpu: dict[int, float] = {}
        self._journal = journal
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @property
    def cpu(self) -> float:
        """CPU seconds of all of them."""
        return sum(self._cpu.values())

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(1.0):
            held = []
            for process in delivery_processes(self._journal):
                with contextlib.suppress(psutil.NoSuchProcess):
                    open_ = [one for one in process.net_connections("tcp") if one.raddr]
                    self.connections = max(self.connections, len(open_))
                    self._cpu[process.pid] = sum(process.cpu_times()[:2])
                    held.append(process.memory_info().rss)
            self.memory = max(self.memory, *held, 0)
            self.memory_together = max(self.memory_together, sum(held))
            self.most_processes = max(self.most_processes, len(held))


if __name__ == "__main__":
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    arguments = sys.argv[1:]
    sqlite = "--sqlite" in arguments
    counts = [int(text) for text in arguments if text != "--sqlite"]
    sys.exit(main(counts or ([1, 8] if sqlite else [1, 4, 16, 64]), sqlite=sqlite))
