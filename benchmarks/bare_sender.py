"""The least that a process next to a training run can do: send points to an MLflow server, and nothing else.

    python -m benchmarks.bare_sender URI POINTS_PER_SECOND

It keeps no journal, reads nothing of the training run and loads nothing but urllib3. What a training run loses to it,
it loses to any delivery that shares its cores with the server. It ends when its stdin is closed.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3

__all__ = ["sending"]

INTERVAL = 0.25  # seconds; the shortest of our delivery
EXPERIMENT = "bare"


@contextlib.contextmanager
def sending(uri: str, points_per_second: int) -> Iterator[None]:
    """Let a sender run, with the priority of our delivery process, until the block exits."""
    from tracking_callbacks._journal.scheduling import lower_priority

    sender = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__)), uri, str(points_per_second)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    lower_priority(sender.pid)
    try:
        yield
    finally:
        sender.communicate()
    if sender.returncode:
        raise RuntimeError(f"the bare sender ended with {sender.returncode}")


def main(uri: str, points_per_second: int) -> None:
    """Send made-up points until stdin is closed."""
    pool = urllib3.PoolManager()

    def call(path: str, **body: Any) -> dict[str, Any]:
        answer = pool.request("POST", f"{uri}/api/2.0/mlflow/{path}", json=body)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {answer.data.decode()}")
        return dict(json.loads(answer.data))

    query = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    found = pool.request("GET", query)
    known = found.status == 200
    experiment = found.json()["experiment"] if known else call("experiments/create", name=EXPERIMENT)
    run = call("runs/create", experiment_id=experiment["experiment_id"])["run"]["info"]["run_id"]
    step, last = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        now = time.monotonic()
        count, last = round(points_per_second * (now - last)), now
        names = [("loss", "grad_norm", "learning_rate", "epoch")[index % 4] for index in range(count)]
        stamp = time.time_ns() // 1_000_000
        points = [
            {"key": name, "value": 0.5, "timestamp": stamp, "step": step + index // 4}
            for index, name in enumerate(names)
        ]
        step += count // 4 + 1
        for first in range(0, count, 1000):
            call("runs/log-batch", run_id=run, metrics=points[first : first + 1000])
    call("runs/update", run_id=run, status="FINISHED", end_time=time.time_ns() // 1_000_000)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
