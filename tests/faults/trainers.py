"""Trainers under test: started quickly, watched, killed, and compared with the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from faults.exactness import check_exact, check_nothing_waited
from faults.ledger import Ledger, read_ledger
from faults.scenarios import STOP
from processes import delivery_processes, wait_for

SCENARIOS = ("core", "huggingface", "sb3")
FRAMEWORKS = {
    "core": (),
    "huggingface": (
        *("torch", "transformers", "transformers.models.bert", "accelerate", "peft", "tokenizers"),
        *("mlflow.transformers", "tracking_callbacks.huggingface"),
    ),
    "sb3": ("torch", "stable_baselines3", "gymnasium", "mlflow.pyfunc", "tracking_callbacks.sb3"),
}
_TESTS = str(Path(__file__).parents[1])
SOAK = os.environ.get("SOAK") == "1"
KILLS = 20 if SOAK else 5


def let_pass(seconds: float) -> None:
    """Let a random time pass, so that a kill falls anywhere within a stage."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, "time passes")


@dataclass
class Trainer:
    """One training process with its own folder, experiment and ledger.

    Attributes:
        journal: Its journal root.
    """

    pid: int
    folder: Path
    experiment: str
    ledger_path: Path
    journal: Path
    forking: Forking
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code as `subprocess` would, or None while the trainer is alive."""
        if self.returncode is None:
            self.returncode = self.forking.ask({"poll": self.pid})["exit code"]
        return self.returncode

    def wait(self, seconds: float = 90.0) -> int:
        """Wait for the exit code."""
        wait_for(lambda: self.poll() is not None, f"the trainer ends; its stderr: {self.errors[-2000:]}", seconds)
        assert self.returncode is not None
        return self.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the trainer has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        """Stop training after the current step."""
        (self.folder / STOP).touch()

    @property
    def errors(self) -> str:
        """What the trainer wrote to stderr."""
        path = self.folder / "stderr.txt"
        return path.read_text() if path.exists() else ""

    @property
    def ledger(self) -> Ledger:
        """What the trainer has written down."""
        return read_ledger(self.ledger_path)

    def reached(self, mark: str) -> bool:
        """Return whether training has reached a mark."""
        return self.ledger_path.exists() and f'"{mark}"' in self.ledger_path.read_text()

    def points(self) -> int:
        """Return how many calls with points the trainer has made so far."""
        return self.ledger_path.read_text().count('"log_metrics", "content"') if self.ledger_path.exists() else 0

    def true_statuses(self) -> set[str]:
        """Return the possible statuses of a killed trainer's run, given how far training had come."""
        if self.reached("trained"):
            return {"FINISHED"}
        return {"FINISHED", "KILLED"} if self.reached("log_model") else {"KILLED"}  # it ends right after its model

    def delivery(self) -> list[psutil.Process]:
        """Return the delivery processes of this trainer's journal root."""
        return delivery_processes(self.journal)

    def delivered(self, seconds: float = 90.0) -> None:
        """Wait until everything is delivered and no delivery process is left."""
        wait_for(lambda: not self.delivery(), f"delivery finishes: {self.delivery_log()}", seconds)

    def delivery_log(self) -> str:
        """The last lines of the delivery log."""
        log = self.journal / "delivery.log"
        return log.read_text()[-2000:] if log.exists() else ""

    def check_exact(self, client: Any) -> list[Any]:
        """Fail unless the store has what the ledger says; return the runs."""
        return check_exact(client, self.experiment, self.ledger, self.folder / f"downloaded-{uuid.uuid4().hex}")

    def check_nothing_waited(self) -> None:
        """Fail if a hook or a verb waited for tracking."""
        check_nothing_waited(self.ledger)


def wait_for_all(trainers: Sequence[Trainer], seconds: float = 90.0) -> None:
    """Wait until all trainers have finished by themselves, without an error."""
    wait_for(lambda: None not in [trainer.poll() for trainer in trainers], "the trainers end", seconds)
    for trainer in trainers:
        assert trainer.returncode == 0, trainer.errors


class Forking:
    """The process that forks the trainers of one scenario."""

    def __init__(self, frameworks: tuple[str, ...], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.trainer", str(folder), *frameworks],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_TESTS, os.environ.get("PYTHONPATH"))))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


class Trainers:
    """Starts trainers; one forking process per scenario serves the whole test session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forking: dict[str, Forking] = {}
        self._started: list[Trainer] = []

    def start(
        self, scenario: str, folder: Path, uri: str, *, environment: dict[str, str] | None = None, **plan: Any
    ) -> Trainer:
        """Start a trainer in a folder, which becomes a separate project.

        Args:
            scenario: A name of `scenarios.BUILDERS`.
            folder: The trainer's working folder; may exist.
            uri: Tracking URI.
            environment: More environment variables.
            plan: See `scenarios.Plan`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").touch()
        experiment = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        ledger = folder / f"ledger-{uuid.uuid4().hex[:8]}.jsonl"
        variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": experiment} | (environment or {})
        journal = Path(variables.get("TRACKING_CALLBACKS_JOURNAL", folder / ".tracking_callbacks"))
        forking = self.forking(scenario)
        answer = forking.ask(
            {
                "folder": str(folder),
                "environment": {key: text for key, text in (os.environ | variables).items() if text},
                "plan": plan | {"scenario": scenario, "ledger": str(ledger)},
            }
        )
        trainer = Trainer(answer["pid"], folder, variables["MLFLOW_EXPERIMENT_NAME"], ledger, journal, forking)
        self._started.append(trainer)
        return trainer

    def start_each(self, folder: Path, uri: str, **plan: Any) -> list[Trainer]:
        """Start a trainer for each scenario with a model to register, all with one journal root in `folder`."""
        environment = plan.pop("environment", {}) | {"TRACKING_CALLBACKS_JOURNAL": str(folder / "journal")}
        unique = uuid.uuid4().hex[:8]
        for name in SCENARIOS:
            self.forking(name)  # one trainer's imports must not slow down another's training
        return [
            self.start(name, folder / name, uri, environment=environment, **{"model": f"{name}-{unique}"} | plan)
            for name in SCENARIOS
        ]

    def forking(self, scenario: str) -> Forking:
        """Return the forking process of a scenario, which starts at the first request."""
        if scenario not in self._forking:
            self._forking[scenario] = Forking(FRAMEWORKS[scenario], self._folder)
        return self._forking[scenario]

    def kill_left_over(self) -> None:
        """Kill the trainers that a failed test left, and their children, because environments wait forever."""
        for trainer in self._started:
            trainer.send(signal.SIGKILL)
            trainer.wait()
        folders = {str(trainer.folder) for trainer in self._started}
        for process in psutil.process_iter(["cwd", "cmdline"]):
            forked = "faults.trainer" in (process.info["cmdline"] or ())
            if forked and process.info["cwd"] in folders:
                process.kill()
        self._started.clear()

    def close(self) -> None:
        """End the forking processes."""
        for forking in self._forking.values():
            forking.close()
