"""Outages with this package's callback and with transformers' own, side by side.

    .venv/bin/python benchmarks/outages.py            # the peer alone takes five minutes without a server

Trains the same tiny BERT with ``logging_steps=1``: without a server, with a server that is killed and restarted three
times, and with a trainer that is killed midway. Prints how training went and what the store holds afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mlflow import MlflowClient

from processes import delivery_processes, free_port, wait_for
from servers import Server, start_server, stop_server

STEPS = 400
PATIENCE_SECONDS = 330
TRAINING = """
import sys, time, logging
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

torch.set_num_threads(1)
set_seed(0)
who, steps = sys.argv[1], int(sys.argv[2])
callbacks = []
if who == "ours":
    from tracking_callbacks.huggingface import MLflowTrainerCallback
    callbacks = [MLflowTrainerCallback(log_model=False)]
rows = [{"input_ids": [5, 6, 7, 8] * 8, "attention_mask": [1] * 32, "labels": i % 2} for i in range(256)]
model = BertForSequenceClassification(BertConfig(
    vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128))
arguments = TrainingArguments("out", max_steps=steps, logging_steps=1, per_device_train_batch_size=8,
    report_to="mlflow" if who == "transformers" else "none", use_cpu=True, disable_tqdm=True, save_strategy="no")
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
print("begin", flush=True)
began = time.monotonic()
trainer.train()
print(f"train {time.monotonic() - began:.1f}", flush=True)
"""


class Training:
    """One training run in a separate process."""

    def __init__(self, who: str, folder: Path, uri: str) -> None:
        self.who = who
        self.seconds: float | None = None
        self.begun = threading.Event()
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_EXPERIMENT_NAME": who,
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-c", TRAINING, who, str(STEPS)]
        (folder / who).mkdir()
        (folder / who / "pyproject.toml").touch()
        self.process = subprocess.Popen(
            command,
            cwd=folder / who,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "begin\n":
                self.begun.set()
            if line.startswith("train "):
                self.seconds = float(line.split()[1])

    def wait(self) -> str:
        """Wait for the end and return how it went."""
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            return f"still not done after {PATIENCE_SECONDS} s"
        self._reader.join()
        if self.seconds is not None:
            return f"train() took {self.seconds:.1f} s, exit code {self.process.returncode}"
        return f"train() died after {time.monotonic() - began:.0f} s, exit code {self.process.returncode}"


def stored(uri: str, who: str) -> str:
    """Describe the runs of one contender: their status and points."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(who)
    if experiment is None:
        return "nothing in the store"
    shown = []
    for run in client.search_runs([experiment.experiment_id]):
        names = [name for name in ("loss", "train/loss") if name in run.data.metrics]
        points = [point.step for name in names for point in client.get_metric_history(run.info.run_id, name)]
        once = len(set(points))
        shown.append(f"{run.info.status}, {once} of {STEPS} losses, {len(points) - once} duplicated")
    return "; ".join(shown) or "no run in the store"


@contextlib.contextmanager
def server_at(folder: Path, port: int) -> Iterator[Server]:
    """Run a server until the block exits."""
    server = start_server(folder, port)
    try:
        yield server
    finally:
        stop_server(server)


def without_a_server(who: str, folder: Path) -> str:
    """Train without a server, start one afterwards, and wait for what still arrives."""
    port = free_port()
    went = Training(who, folder, f"http://127.0.0.1:{port}").wait()
    with server_at(folder, port) as server:
        wait_for(lambda: not delivery_processes(folder), "delivery finishes", seconds=120)
        return f"{went}; afterwards: {stored(server.uri, who)}"


def with_a_server_killed_three_times(who: str, folder: Path) -> str:
    """Kill and restart the server three times during training."""
    port = free_port()
    server = start_server(folder, port)
    training = Training(who, folder, server.uri)
    training.begun.wait(120)
    for _ in range(3):
        training.process.poll()
        threading.Event().wait(1.0)
        stop_server(server)
        threading.Event().wait(1.0)
        server = start_server(folder, port)
    went = training.wait()
    try:
        wait_for(lambda: not delivery_processes(folder), "delivery finishes", seconds=120)
        return f"{went}; {stored(server.uri, who)}"
    finally:
        stop_server(server)


def killed_in_the_middle(who: str, folder: Path) -> str:
    """Kill the trainer two seconds after training starts; look at the store ten seconds later."""
    with server_at(folder, free_port()) as server:
        training = Training(who, folder, server.uri)
        training.begun.wait(120)
        threading.Event().wait(2.0)
        training.process.kill()
        training.process.wait()
        threading.Event().wait(10.0)
        return f"10 s after SIGKILL: {stored(server.uri, who)}"


def main() -> None:
    """Print every scenario for every contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scenarios = [without_a_server, with_a_server_killed_three_times, killed_in_the_middle]
    parser.add_argument("--only", choices=[scenario.__name__ for scenario in scenarios])
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as name:
        untracked = Training("untracked", Path(name), "http://127.0.0.1:9").wait()
    print(f"untracked: {untracked}", flush=True)
    for scenario in scenarios:
        if only in (None, scenario.__name__):
            print(scenario.__name__.replace("_", " "), flush=True)
            for who in ("ours", "transformers"):
                with tempfile.TemporaryDirectory() as name:
                    print(f"  {who:13}{scenario(who, Path(name))}", flush=True)


if __name__ == "__main__":
    main()
