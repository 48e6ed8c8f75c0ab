"""Studies of Optuna: one run for the study, one for each trial, from one process and from four."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from stable_baselines3 import PPO

from faults.exactness import stored_runs
from processes import wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.pictures.study import study_figures
from tracking_callbacks.integrations.optuna import OptunaCallback, _as_document
from tracking_callbacks.sb3 import MLflowSB3Callback

PROCESS = """
    import sys, time
    import optuna
    from tracking_callbacks.integrations.optuna import OptunaCallback

    def objective(trial):
        time.sleep(0.05)
        return (trial.suggest_float("x", -5, 5) - 1) ** 2

    study = optuna.create_study(study_name="shared", storage=f"sqlite:///{sys.argv[1]}", load_if_exists=True)
    study.optimize(objective, n_trials=5, callbacks=[OptunaCallback()])
"""


@pytest.fixture
def store(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The experiment of a test."""
    name = f"study-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "journal"))
    return name


def of(client: MlflowClient, name: str, trials: int) -> tuple[StoredRun, list[StoredRun]]:
    """Return the study's run and those of its trials, as soon as delivery has brought all of them to their end."""

    def ended() -> list[StoredRun]:
        found = list(stored_runs(client, name).values())
        return found if len(found) == trials + 1 and all(run.info.status != "RUNNING" for run in found) else []

    found = wait_for(ended, f"{trials} trials and their study are in the store", seconds=60)
    (study,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in found if run is not study]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {study.info.run_id}
    return study, sorted(nested, key=lambda run: run.info.start_time)


def artifacts(client: MlflowClient, run: StoredRun, folder: str) -> set[str]:
    return {Path(file.path).name for file in client.list_artifacts(run.info.run_id, folder)}


def test_a_study_and_its_trials_are_nested_runs_with_their_true_status(client: MlflowClient, store: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -5, 5)
        trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("dataset", "reviews")
        for step in range(3):
            trial.report(x * step, step)
        if trial.number == 2:
            raise optuna.TrialPruned
        if trial.number == 3:
            raise FloatingPointError("the loss is not a number")
        return (x - 1) ** 2

    study = optuna.create_study(study_name="quadratic", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=6, callbacks=[OptunaCallback()], catch=(FloatingPointError,))
    parent, trials = of(client, store, 6)

    assert (parent.info.run_name, parent.info.status) == ("study quadratic", "FINISHED")
    assert parent.data.params["sampler"] == "RandomSampler"
    assert parent.data.tags["best_trial"] == str(study.best_trial.number)
    assert float(parent.data.tags["best.x"]) == study.best_params["x"]
    best = client.get_metric_history(parent.info.run_id, "best_value")
    assert [point.step for point in best] == [0, 1, 4, 5]
    assert best[-1].value == study.best_value

    by_name = {run.info.run_name: run for run in trials}
    statuses = {name: run.info.status for name, run in by_name.items()}
    assert statuses == {
        **{f"trial {number}": "FINISHED" for number in (0, 1, 4, 5)},
        **{"trial 2": "KILLED", "trial 3": "FAILED"},
    }
    first = by_name["trial 0"]
    assert float(first.data.params["x"]) == study.trials[0].params["x"]
    assert first.data.metrics["value"] == study.trials[0].value
    assert first.data.tags["dataset"] == "reviews"
    assert first.data.tags["optuna.state"] == "complete"
    began = study.trials[0].datetime_start
    assert began is not None
    assert first.info.start_time == int(began.timestamp() * 1000)
    assert len(client.get_metric_history(by_name["trial 2"].info.run_id, "intermediate_value")) == 3
    document = mlflow.artifacts.load_dict(f"{first.info.artifact_uri}/config/trial.json")
    assert "FloatDistribution" in document["distributions"]["x"]

    table = client.load_table(parent.info.experiment_id, "study/trials.json", [parent.info.run_id])
    assert list(table["number"]) == list(range(6))
    wait_for(
        lambda: {"optimization_history.png", "param_importances.png"} <= artifacts(client, parent, "study"),
        "the pictures are there",
        seconds=60,
    )
    headline = f"**6 trials** with optuna {optuna.__version__}, the best is trial {study.best_trial.number}. FINISHED."
    assert client.get_run(parent.info.run_id).data.tags["mlflow.note.content"].startswith(headline)


def test_the_history_shows_each_trial_under_its_number(client: MlflowClient, store: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    states = optuna.trial.TrialState
    for number in range(6):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, number if number % 2 else None, state=states.COMPLETE if number % 2 else states.PRUNED)
    trials = [_as_document(one) for one in study.get_trials()]
    figure = study_figures({"directions": ["minimize"], "trials": trials})["optimization_history"]

    assert figure.axes[0].collections[0].get_offsets()[:, 0].tolist() == [1, 3, 5]


def test_an_exception_that_ends_a_study_is_that_of_its_trial(client: MlflowClient, store: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_int("x", 0, 9) >= 0 and trial.number == 1:
            raise ArithmeticError("diverged")
        return 0.0

    study = optuna.create_study(directions=["minimize"])
    with pytest.raises(ArithmeticError):
        study.optimize(objective, n_trials=3, callbacks=[OptunaCallback()])
    parent, (first, second) = of(client, store, 2)

    assert (parent.info.status, first.info.status, second.info.status) == ("FAILED", "FINISHED", "FAILED")
    assert second.data.params["x"]
    assert "diverged" in mlflow.artifacts.load_text(f"{second.info.artifact_uri}/error.txt")

    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=1, callbacks=[OptunaCallback()])
    again, trials = of(client, store, 3)
    assert (again.info.run_id, again.info.status, len(trials)) == (parent.info.run_id, "FINISHED", 3)


def test_several_objectives_have_their_names(client: MlflowClient, store: str) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "f1"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.5), n_trials=3, callbacks=[OptunaCallback()])
    parent, trials = of(client, store, 3)

    assert all(set(run.data.metrics) == {"loss", "f1"} for run in trials)
    wait_for(lambda: "pareto_front.png" in artifacts(client, parent, "study"), "the picture is there", seconds=60)


def test_training_in_an_objective_writes_to_the_run_of_its_trial(client: MlflowClient, store: str) -> None:
    tracker = MLflowTracker(delivery=Delivery(wait_at_end=0))

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1e-3)
        callback = MLflowSB3Callback(tracker, log_model=False)
        PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, learning_rate=rate).learn(32, callback=callback)
        if trial.number == 1:
            raise optuna.TrialPruned
        return 1.0

    optuna.create_study().optimize(objective, n_trials=2, callbacks=[OptunaCallback(tracker)])
    _, trials = of(client, store, 2)

    assert [run.info.status for run in trials] == ["FINISHED", "KILLED"]
    assert all({"learning_rate", "trial.rate"} <= set(run.data.params) for run in trials)
    assert [run.data.metrics.get("value") for run in trials] == [1.0, None]
    assert all("train/loss" in run.data.metrics for run in trials)


def test_threads_of_a_study_log_each_trial_once(client: MlflowClient, store: str) -> None:
    callback = OptunaCallback()
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8, n_jobs=3, callbacks=[callback])
    trial = optuna.create_study()
    trial.optimize(lambda trial: 0.0, n_trials=1)  # something else goes on in the program
    runs = stored_runs(client, store)
    parent = next(iter(callback._studies.values()))
    parent._end(None)  # as the end of the program does
    _, trials = of(client, store, 8)

    assert len(runs) <= 9
    assert Counter(run.info.run_name for run in trials) == Counter(f"trial {number}" for number in range(8))


def test_four_processes_on_one_storage_share_the_run_of_the_study(
    client: MlflowClient, store: str, tmp_path: Path
) -> None:
    optuna.create_study(study_name="shared", storage=f"sqlite:///{tmp_path}/optuna.db")
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path / "optuna.db")]
    started = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        ends = [process.communicate(timeout=150)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0, 0, 0], ends
    finally:
        for process in started:
            process.kill()
    parent, trials = of(client, store, 20)

    assert parent.info.status == "FINISHED"
    assert Counter(run.info.run_name for run in trials) == Counter(f"trial {number}" for number in range(20))
    assert {run.info.status for run in trials} == {"FINISHED"}
    history = client.get_metric_history(parent.info.run_id, "value")
    assert sorted(point.step for point in history) == list(range(20))
