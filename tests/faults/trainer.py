"""Runs as a separate process: imports the frameworks once, then forks a trainer for each line on its input.

Every trainer is a real process that ends or is killed like any other; forking only saves the seconds of its imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from typing import Any

import tracking_callbacks
from faults import scenarios


def wait_for_plan(frameworks: list[str]) -> dict[str, Any]:
    """Fork a trainer for each request; return the plan in the trainer, never in the forking process."""
    for name in frameworks:
        importlib.import_module(name)
    if "torch" in frameworks:
        sys.modules["torch"].set_num_threads(1)
    gc.freeze()
    _answer({"version": tracking_callbacks.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        if (pid := request.get("poll")) is not None:
            ended, status = os.waitpid(pid, os.WNOHANG)
            _answer({"exit code": os.waitstatus_to_exitcode(status) if ended else None})
        elif (child := os.fork()) != 0:
            _answer({"pid": child})
        else:
            _move_to(request["folder"], request["environment"])
            return dict(request["plan"])
    os._exit(0)


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _move_to(folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, (name, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            ("stdout.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            ("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ]
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    # The first argument only names the folder in the list of processes.
    scenarios.run(scenarios.Plan(**wait_for_plan(sys.argv[2:])))
