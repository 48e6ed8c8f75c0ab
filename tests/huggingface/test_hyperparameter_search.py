"""A search is a run with one nested run per trial, each with its own params and its true status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

import tracking_callbacks.integrations.optuna  # noqa: F401 - it watches the study that the search runs, too
from huggingface.reading import artifacts, finished_run, runs_of
from processes import wait_for
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]
RATES = (1e-2, 2e-2, 3e-2, 4e-2)


class PrunesTheSecond(optuna.pruners.BasePruner):
    """Prunes trial 1 at its first evaluation."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1


class FailsTheThird(TrainerCallback):
    """Lets the trial with the third learning rate diverge."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.learning_rate == RATES[2] and state.global_step == 2:
            raise FloatingPointError("diverged")


class InOrder(optuna.samplers.RandomSampler):
    """Suggests the choices in order."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return distribution.choices[trial.number]


def search(trainer: Trainer) -> Any:
    """Try the learning rates one after the other; trial 1 is pruned, and the search goes on after trial 2 fails."""
    trainer.add_callback(FailsTheThird())
    return trainer.hyperparameter_search(
        backend="optuna",
        n_trials=len(RATES),
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        sampler=InOrder(),
        pruner=PrunesTheSecond(),
        catch=(FloatingPointError,),
    )


def finished_search(client: MlflowClient, run_id: str) -> Run:
    """Return the run of a search once it has ended."""
    wait_for(lambda: client.get_run(run_id).info.status == "FINISHED", "the search ends")
    return client.get_run(run_id)


@pytest.fixture
def model_init(base_folder: Path) -> Callable[[], BertForSequenceClassification]:
    return lambda: BertForSequenceClassification.from_pretrained(base_folder)


def test_a_search_is_a_run_with_a_nested_run_for_each_trial(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: TrainerFactory,
    model_init: Callable[[], Any],
    tmp_path: Path,
) -> None:
    name = f"searched-{tmp_path.name}"
    callback = MLflowTrainerCallback(
        tracker, run_name="the search", registered_model_name=name, aliases=["champion"], log_checkpoints=True
    )
    trainer = make_trainer(
        None,
        callback,
        model_init=model_init,
        eval_strategy="steps",
        eval_steps=6,  # once, in the last step, because a pruned trial has done all its steps
        save_strategy="steps",
        save_steps=6,
    )
    best = search(trainer)
    finished_run(callback)
    with pytest.raises(MlflowException, match="not found"):
        client.get_model_version_by_alias(name, "champion")
    trainer.train()
    ordinary = finished_run(callback)
    runs = {run.info.run_name: run for run in runs_of(client, tracker) if run.info.run_id != ordinary.run_id}
    parent = finished_search(client, runs.pop("the search").info.run_id)

    trials = [runs[f"trial {number}"] for number in range(4)]
    assert len(runs) == 4
    assert [run.info.status for run in trials] == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert [float(run.data.params["trial.learning_rate"]) for run in trials] == list(RATES)
    assert [float(run.data.params["learning_rate"]) for run in trials] == list(RATES)
    assert [run.data.tags.get("tracking_callbacks.pruned") for run in trials] == [None, "true", None, None]
    assert [bool(client.get_run(run.info.run_id).outputs.model_outputs) for run in trials] == [
        *(True, False, False, True),
    ]
    assert [run.data.metrics.get("eval/loss") is None for run in trials] == [False, False, True, False]
    assert trials[int(best.run_id)].data.metrics["eval/loss"] == best.objective
    assert parent.data.metrics["best_value"] == best.objective
    assert parent.data.tags["best_trial"] == best.run_id
    assert float(parent.data.tags["best.learning_rate"]) == best.hyperparameters["learning_rate"]
    assert "checkpoints/checkpoint-6/model.safetensors" in artifacts(client, trials[3].info, "checkpoints")
    assert "learning_rate" not in parent.data.params
    assert parent.data.params["max_steps"] == "6"
    assert parent.data.tags["tracking_callbacks.trials"] == "4"
    assert "mlflow.parentRunId" not in client.get_run(ordinary.run_id).data.tags
    version = client.get_model_version_by_alias(name, "champion")
    assert (str(version.version), version.run_id) == ("1", ordinary.run_id)


def test_a_users_own_sweep_nests_its_training_runs(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, model_init: Callable[[], Any]
) -> None:
    """Run the loop of the README: a parent run, and a block for each training run."""
    callback = MLflowTrainerCallback(tracker, log_model=False)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_categorical("learning_rate", RATES)
        with tracker.start_run(f"lr {rate}", parent=sweep) as run:
            run.log_params({f"trial.{name}": value for name, value in trial.params.items()})
            trainer = make_trainer(None, callback, model_init=model_init, learning_rate=rate, max_steps=2)
            trainer.add_callback(FailsTheThird())
            trainer.train()
            assert callback.run is run
            if trial.number == 1:
                raise optuna.TrialPruned
        return 0.0

    with tracker.start_run("sweep") as sweep:
        study = optuna.create_study(sampler=InOrder())
        study.optimize(objective, n_trials=3, catch=(FloatingPointError,))
    assert sweep.flush(timeout=60).complete
    finished_run(callback)
    wait_for(lambda: all(run.info.status != "RUNNING" for run in runs_of(client, tracker)), "all runs have ended")
    runs = {stored.info.run_name: stored for stored in runs_of(client, tracker)}

    assert {name: stored.info.status for name, stored in runs.items()} == {
        "sweep": "FINISHED",
        "lr 0.01": "FINISHED",
        "lr 0.02": "KILLED",
        "lr 0.03": "FAILED",
    }
    children = [runs[f"lr {rate}"] for rate in RATES[:3]]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {runs["sweep"].info.run_id}
    assert [float(child.data.params["learning_rate"]) for child in children] == list(RATES[:3])
    assert [child.data.tags.get("tracking_callbacks.pruned") for child in children] == [None, "true", None]
    assert children[2].data.tags["tracking_callbacks.error"] == "FloatingPointError: diverged"


def test_a_search_joins_the_users_own_run(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, model_init: Callable[[], Any]
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(None, callback, model_init=model_init, max_steps=2)
    with tracker.start_run("mine") as mine:
        trainer.hyperparameter_search(
            backend="optuna", n_trials=1, hp_space=lambda trial: {}, hp_name=lambda trial: f"first of {trial.number}"
        )
        ended = mine.ended
    finished_run(callback)
    assert mine.flush(timeout=60).complete
    runs = {stored.info.run_name: stored for stored in runs_of(client, tracker)}

    assert not ended
    assert set(runs) == {"mine", "first of 0"}
    assert runs["first of 0"].data.tags["mlflow.parentRunId"] == mine.run_id
    assert runs["first of 0"].data.metrics["eval/loss"] > 0  # from the evaluation that follows the search


def test_a_search_for_two_objectives_names_the_trials_that_no_other_is_better_than(
    tracker: MLflowTracker, client: MlflowClient, make_trainer: TrainerFactory, model_init: Callable[[], Any]
) -> None:
    callback = MLflowTrainerCallback(tracker, log_model=False)
    trainer = make_trainer(None, callback, model_init=model_init, max_steps=1)
    found = trainer.hyperparameter_search(
        backend="optuna",
        n_trials=2,
        direction=["minimize", "minimize"],
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
        compute_objective=lambda metrics: [trainer.args.learning_rate, -trainer.args.learning_rate],
        sampler=InOrder(),
    )
    finished_run(callback)
    ids = {stored.info.run_name: stored.info.run_id for stored in runs_of(client, tracker)}
    stored = finished_search(client, ids["search"])

    assert {trial.run_id for trial in found} == {"0", "1"}
    assert set(stored.data.tags["best_trials"].split(", ")) == {"0", "1"}
