"""Experiments of Ray Tune on a local cluster; Ray is not installed with the others, `make integrations` brings it."""

from __future__ import annotations

import textwrap
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from faults.exactness import stored_runs
from processes import run_script, wait_for

pytest.importorskip("ray.tune")
pytestmark = pytest.mark.timeout(400)

BEGIN = """
    import os, signal, sys, time
    from pathlib import Path
    import ray
    from ray import tune
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    from tracking_callbacks.integrations.ray import TuneCallback
"""
SWEEP = (
    BEGIN
    + """
    def train(config):
        first = Path(config["folder"], f"attempt-{config['number']}")
        again = first.exists()
        first.touch()
        for step in range(1, 6):
            if step == 3 and config["number"] == 1 and not again:
                raise FloatingPointError("the loss is not a number")
            if step == 3 and config["number"] == 2 and not again:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 3 and config["number"] == 3:
                raise ArithmeticError("diverged for good")
            tune.report({"loss": config["number"] / step, "eval": {"f1": 0.5}, "note": "a text"})
            time.sleep(0.1)

    folder = os.getcwd()
    tuner = tune.Tuner(
        train,
        param_space={"number": tune.grid_search(list(range(8))), "folder": folder, "model": {"layers": 2}},
        run_config=tune.RunConfig(
            name="NAME", storage_path=folder + "/ray", callbacks=[TuneCallback()],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()
"""
)
AGENTS = (
    BEGIN
    + """
    def train(config):
        from stable_baselines3 import PPO
        from tracking_callbacks.sb3 import MLflowSB3Callback
        agent = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, learning_rate=config["rate"])
        agent.learn(64, callback=MLflowSB3Callback(log_model=False))
        tune.report({"score": 1.0})

    tuner = tune.Tuner(
        train,
        param_space={"rate": tune.grid_search([1e-3, 1e-4, 1e-5])},
        run_config=tune.RunConfig(name="NAME", storage_path=os.getcwd() + "/ray", callbacks=CALLBACKS),
    )
    tuner.fit()
"""
)


@pytest.fixture
def experiment(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The experiment that the processes started by a test log to."""
    name = f"ray-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("TRACKING_CALLBACKS_JOURNAL", raising=False)
    return name


def sweep(code: str, name: str, folder: Path) -> None:
    (folder / "pyproject.toml").touch()  # the project whose journal root the workers find
    done = run_script(textwrap.dedent(code).replace("NAME", name), cwd=folder, timeout=300)
    assert done.returncode == 0 or "TuneError" in done.stderr, done.stderr[-4000:]


def nested(client: MlflowClient, name: str, trials: int) -> tuple[StoredRun, list[StoredRun]]:
    def ended() -> list[StoredRun]:
        found = list(stored_runs(client, name).values())
        return found if len(found) > trials and all(run.info.status != "RUNNING" for run in found) else []

    found = wait_for(ended, "all runs have ended in the store", seconds=60)
    (study,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    runs = [run for run in found if run is not study]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {study.info.run_id}
    assert len(runs) == trials
    return study, runs


def test_each_trial_has_one_run_with_its_points_once_and_its_true_status(
    client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    sweep(SWEEP, experiment, tmp_path)
    study, trials = nested(client, experiment, 8)

    assert (study.info.run_name, study.info.status) == (experiment, "FINISHED")
    by_number = {int(run.data.params["number"]): run for run in trials}
    assert sorted(by_number) == list(range(8))
    for number, run in by_number.items():
        reported = 2 if number == 3 else 5
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in history] == [(s, number / s) for s in range(1, reported + 1)]
        assert run.data.metrics["eval/f1"] == 0.5
        assert run.data.params["model.layers"] == "2"
        attempts = run.data.tags.get("tracking_callbacks.attempts")
        assert attempts == ("2" if number in (1, 2, 3) else None)
    assert Counter(run.info.status for run in trials) == {"FINISHED": 7, "FAILED": 1}
    assert {run.info.run_name for run in trials} == {f"trial {number}" for number in range(8)}
    assert all(run.data.tags["ray.trial"].startswith("train_") for run in trials)
    failed = by_number[3]
    assert failed.info.status == "FAILED"
    assert "diverged for good" in mlflow.artifacts.load_text(f"{failed.info.artifact_uri}/error.txt")
    table = client.load_table(study.info.experiment_id, "experiment/trials.json", [study.info.run_id])
    assert sorted(table["number"]) == list(range(8))


@pytest.mark.parametrize("callbacks", ["[TuneCallback()]", "[]"])
def test_a_callback_in_a_worker_writes_to_the_run_of_its_trial(
    callbacks: str, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    sweep(AGENTS.replace("CALLBACKS", callbacks), experiment, tmp_path)
    if callbacks == "[]":
        trials = list(stored_runs(client, experiment).values())
        assert len(trials) == 3
    else:
        _, trials = nested(client, experiment, 3)
        assert all(run.data.metrics["score"] == 1.0 for run in trials)
        assert {run.data.params["rate"] for run in trials} == {"0.001", "0.0001", "1e-05"}
    assert {run.info.status for run in trials} == {"FINISHED"}
    for run in trials:
        assert client.get_metric_history(run.info.run_id, "train/loss")[-1].step == 64
        assert run.data.params["n_steps"] == "32"


TRAINER = """
    import os
    import ray
    import ray.train.torch
    from ray.train import RunConfig, ScalingConfig
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")

    def train(config):
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        from tracking_callbacks.huggingface import MLflowTrainerCallback
        model = BertForSequenceClassification(BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ))
        rows = [{"input_ids": [1, 2, 3], "labels": i % 2} for i in range(16)]
        arguments = TrainingArguments("out", max_steps=4, logging_steps=1, report_to="none", use_cpu=True)
        callback = MLflowTrainerCallback(log_model=False)
        Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
        ray.train.report({"tracked": callback.run is not None, "journal": os.environ["TRACKING_CALLBACKS_JOURNAL"]})

    trainer = ray.train.torch.TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="NAME", storage_path=os.getcwd() + "/ray"),
    )
    print(trainer.fit().metrics)
"""


def test_two_workers_of_ray_train_write_one_run(
    client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "journal"))
    sweep(TRAINER, experiment, tmp_path)

    (run,) = stored_runs(client, experiment).values()
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    assert run.data.params["world_size"] == "2"
