"""Minutes of random SIGKILLs of trainers, delivery processes and the server, then the count of every point.

    make soak
    .venv/bin/python tests/faults/soak.py --minutes 2 --seed 7

Three trainers log runs of some seconds each, to one journal root and one server, and write down every call that has
returned. Each kind of process is killed every few seconds. At the end everything is synced and compared: a point is
lost if its call had returned and it is not in the store, doubled if it is there twice. Exits with 1 if any is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow import MlflowClient

from conftest import Server, start_server, stop_server
from processes import delivery_processes, free_port, wait_for

TRAINERS = 3
TRAINER = """
import os, random, sys, time
from tracking_callbacks import MLflowTracker

ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
tracker = MLflowTracker(sys.argv[2], "soak", journal_root=sys.argv[3], flush_timeout=1)
stop = sys.argv[4]
while not os.path.exists(stop):
    until = time.monotonic() + random.uniform(3, 12)
    with tracker.start_run() as run:
        os.write(ledger, f"run {run.run_key}\\n".encode())
        run.log_params({"seconds": until})
        run.log_text("kept", "note.txt")
        os.write(ledger, f"files {run.run_key}\\n".encode())
        step = 0
        while time.monotonic() < until and not os.path.exists(stop):
            run.log_metrics({"value": step / 7, "same": 1.0}, step=step)
            os.write(ledger, f"point {run.run_key} {step}\\n".encode())
            step += 1
            time.sleep(0.002)
    os.write(ledger, f"end {run.run_key}\\n".encode())
"""


class Soak:
    """The processes of one soak, and how often each kind was killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._pause = threading.Event()
        self._stop = folder / "stop"
        self._trainers: list[subprocess.Popen[bytes]] = []
        self._ledgers = 0
        self.server: Server = start_server(folder, free_port())

    def run(self, seconds: float) -> None:
        """Kill at random for so long, then let everything come to its end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            while len(self._trainers) < TRAINERS:
                self._start_trainer()
            self._pause.wait(self._random.uniform(0.5, 3.0))
            kind = self._random.choice(["trainer", "trainer", "delivery", "delivery", "server"])
            self.kills[kind] += getattr(self, f"_kill_{kind}")()
        self._stop.touch()
        for trainer in self._trainers:
            trainer.wait(timeout=60)
        wait_for(lambda: not delivery_processes(self.folder), "delivery comes to its end", seconds=300)
        command = [sys.executable, "-m", "tracking_callbacks.cli", "sync", str(self.folder / "journal")]
        subprocess.run(command, check=False, timeout=600)

    def close(self) -> None:
        """Kill what is left."""
        self._stop.touch()
        for trainer in self._trainers:
            trainer.kill()
            trainer.wait()
        for process in delivery_processes(self.folder):
            process.kill()
        stop_server(self.server)

    def _start_trainer(self) -> None:
        self._ledgers += 1
        ledger = self.folder / f"{self._ledgers:04d}.ledger"
        arguments = [str(ledger), self.server.uri, str(self.folder / "journal"), str(self._stop)]
        with open(self.folder / "trainers.log", "ab") as log:
            command = [sys.executable, "-c", TRAINER, *arguments]
            self._trainers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder))

    def _kill_trainer(self) -> int:
        trainer = self._trainers.pop(self._random.randrange(len(self._trainers)))
        trainer.kill()
        trainer.wait()
        return 1

    def _kill_delivery(self) -> int:
        processes = delivery_processes(self.folder)
        if processes:
            self._random.choice(processes).kill()
        return len(processes) > 0

    def _kill_server(self) -> int:
        stop_server(self.server)
        self._pause.wait(self._random.uniform(0.0, 3.0))
        self.server = start_server(self.folder, int(self.server.uri.rpartition(":")[2]))
        return 1


def read_ledgers(folder: Path) -> tuple[dict[str, set[int]], set[str], set[str]]:
    """Return the accepted steps of each run, the runs whose file was accepted, and those that ended by themselves."""
    points: dict[str, set[int]] = defaultdict(set)
    with_files, ended = set(), set()
    for ledger in folder.glob("*.ledger"):
        for line in ledger.read_text().splitlines():
            kind, key, *step = line.split()
            if kind == "point":
                points[key].add(int(step[0]))
            elif kind == "files":
                with_files.add(key)
            elif kind == "end":
                ended.add(key)
            else:
                points.setdefault(key, set())
    return points, with_files, ended


def compare(client: MlflowClient, folder: Path) -> Counter[str]:
    """Count what was accepted, what is in the store, what is lost, doubled or wrong."""
    points, with_files, ended = read_ledgers(folder)
    experiment = client.get_experiment_by_name("soak")
    stored = defaultdict(list)
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        for run in page:
            stored[run.data.tags["tracking_callbacks.run_key"]].append(run)
        if not (token := page.token):
            break
    count: Counter[str] = Counter({"runs": len(points), "runs lost": 0, "runs doubled": 0, "statuses wrong": 0})
    for key, steps in points.items():
        runs = stored[key]
        count["runs lost"] += not runs
        count["runs doubled"] += max(len(runs) - 1, 0)
        if not runs:
            count["points lost"] += 2 * len(steps)
            continue
        run_id = runs[0].info.run_id
        # A trainer may be killed after its run's end was accepted and before it has written that down.
        right = {"FINISHED"} if key in ended else {"KILLED", "FINISHED"}
        count["statuses wrong"] += runs[0].info.status not in right
        count[f"runs {runs[0].info.status}"] += 1
        for name in ("value", "same"):
            found = Counter(point.step for point in client.get_metric_history(run_id, name))
            count["points accepted"] += len(steps)
            count["points delivered"] += found.total()
            count["points lost"] += len(steps - found.keys())
            count["points doubled"] += found.total() - len(found)
            count["points in flight at a kill"] += len(found.keys() - steps)
        if key in with_files:
            count["files lost"] += "note.txt" not in {entry.path for entry in client.list_artifacts(run_id)}
    return count


def main() -> int:
    """Soak and print the count; return 1 if anything is lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

    with tempfile.TemporaryDirectory(prefix="soak-") as name, contextlib.ExitStack() as stack:
        soak = Soak(Path(name), options.seed)
        stack.callback(soak.close)
        soak.run(options.minutes * 60)
        count = compare(MlflowClient(soak.server.uri), Path(name))
    print("kills:", ", ".join(f"{kind} {number}" for kind, number in sorted(soak.kills.items())))
    for what, number in count.items():
        print(f"{what}: {number}")
    bad = ("points lost", "points doubled", "runs lost", "runs doubled", "files lost", "statuses wrong")
    return int(any(count[what] for what in bad))


if __name__ == "__main__":
    sys.exit(main())
