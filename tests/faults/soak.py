"""Kill trainers, delivery processes and the server at random for minutes, then count every point.

    make soak
    .venv/bin/python tests/faults/soak.py --minutes 2 --seed 7

Trainers that run for some seconds each, with the bare tracker and with both callbacks, share one journal root and one
server. They write down every call that has returned and every record that their journals have taken. Each kind of
process is killed every few seconds. At the end everything is synced and compared, as in the fault matrix: a point is
lost if it was accepted and is not in the store, and duplicated if it is there twice; files, models, params, tags, times
and statuses must match exactly. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow import MlflowClient

from faults.exactness import journaled_points, stored_points, stored_runs
from faults.trainers import SCENARIOS, Trainer, Trainers
from processes import delivery_processes, free_port, wait_for
from servers import Server, start_server, stop_server

# These plans keep a trainer busy for about ten seconds.
PLANS = {
    "core": {"steps": 4000, "pace": 0.002},
    "huggingface": {"steps": 200, "pace": 0.05},
    "sb3": {"steps": 2048, "pace": 0.1},
}


class Soak:
    """The processes of one soak, and how often each kind was killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.trainers: list[tuple[str, Trainer]] = []
        self._random = random.Random(seed)
        self._pause = threading.Event()
        self._running: dict[str, Trainer] = {}
        self._trainers = Trainers(folder)
        self.server: Server = start_server(folder, free_port())

    def run(self, seconds: float) -> None:
        """Kill at random for that long, then let everything finish."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for scenario in SCENARIOS:
                if scenario not in self._running or self._running[scenario].poll() is not None:
                    self._start(scenario)
            self._pause.wait(self._random.uniform(0.5, 4.0))
            kind = self._random.choice(["trainer", "trainer", "delivery", "delivery", "server"])
            self.kills[kind] += getattr(self, f"_kill_{kind}")()
        for trainer in self._running.values():
            trainer.stop()
        for trainer in self._running.values():
            trainer.wait(120)
        wait_for(lambda: not delivery_processes(self.folder), "delivery finishes", seconds=600)
        command = [sys.executable, "-m", "tracking_callbacks.cli", "sync", str(self.folder / "journal")]
        subprocess.run(command, check=False, timeout=600)

    def close(self) -> None:
        """Kill what is left."""
        self._trainers.kill_left_over()
        self._trainers.close()
        for process in delivery_processes(self.folder):
            process.kill()
        stop_server(self.server)

    def _start(self, scenario: str) -> None:
        number = len(self.trainers)
        environment = {"TRACKING_CALLBACKS_JOURNAL": str(self.folder / "journal")}
        plan = {"model": f"model-{number}", "flush": 0, "tracker": {"delivery": {"flush_timeout": 1}}} | PLANS[scenario]
        folder = self.folder / f"{scenario}-{number}"
        self._running[scenario] = self._trainers.start(
            scenario, folder, self.server.uri, environment=environment, **plan
        )
        self.trainers.append((scenario, self._running[scenario]))

    def _kill_trainer(self) -> int:
        trainer = self._random.choice(list(self._running.values()))
        if trainer.poll() is not None:
            return 0
        trainer.send(signal.SIGKILL)
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


def compare(client: MlflowClient, trainers: list[tuple[str, Trainer]]) -> Counter[str]:
    """Count what was accepted, what is in the store, what is lost, duplicated or wrong."""
    count = Counter(dict.fromkeys(BAD, 0))
    for scenario, trainer in trainers:
        ledger = trainer.ledger
        runs = stored_runs(client, trainer.experiment)
        count[f"trainers, {scenario}"] += 1
        for key, run in runs.items():
            journaled, stored = journaled_points(ledger.of_run(key)), stored_points(client, run)
            known = {point for point, _ in journaled}
            extra = [point for (point, _) in (stored - journaled).elements()]
            count["points accepted"] += journaled.total()
            count["points delivered"] += stored.total()
            count["points lost"] += (journaled - stored).total()
            count["points duplicated"] += sum(point in known for point in extra)
            count["points in flight at a kill"] += sum(point not in known for point in extra)
            count[f"runs {run.info.status}"] += 1
            count["statuses wrong"] += run.info.status not in trainer.true_statuses()
        count["runs lost"] += len(ledger.run_keys - runs.keys())
        try:
            trainer.check_exact(client)
        except AssertionError as error:
            count["trainers not exact"] += 1
            print(f"{trainer.folder.name}, exit code {trainer.returncode}: {error}")
    return count


BAD = ("points lost", "points duplicated", "runs lost", "statuses wrong", "trainers not exact")


def main() -> int:
    """Soak and print the count; return 1 if anything is lost, duplicated or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}

    with tempfile.TemporaryDirectory(prefix="soak-") as name, contextlib.ExitStack() as stack:
        soak = Soak(Path(name), options.seed)
        stack.callback(soak.close)
        soak.run(options.minutes * 60)
        count = compare(MlflowClient(soak.server.uri, soak.server.uri), soak.trainers)
    print("kills:", ", ".join(f"{kind} {number}" for kind, number in sorted(soak.kills.items())))
    for what, number in sorted(count.items()):
        print(f"{what}: {number}")
    return int(any(count[what] for what in BAD))


if __name__ == "__main__":
    sys.exit(main())
