"""The callback's `promote`: a worse training run does not take the alias, and an evaluation afterwards counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from reading import finished_run
from transformers import BertForSequenceClassification, Trainer

from tracking_callbacks import ConfigError, MLflowTracker, Promotion
from tracking_callbacks.huggingface import MLflowTrainerCallback


def test_only_the_better_training_run_becomes_champion(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: Callable[..., Trainer],
    full_model: BertForSequenceClassification,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"sentiment-{tmp_path.name}"
    promote = {"alias": "champion", "by": "eval/loss", "challenger": "challenger"}

    def trained(**arguments: object) -> MLflowTrainerCallback:
        callback = MLflowTrainerCallback(tracker, registered_model_name=name, promote=promote)
        trainer = make_trainer(full_model, callback, eval_strategy="epoch", **arguments)
        trainer.train()
        assert not finished_run(callback).report().rejected
        return callback

    trained(learning_rate=5e-2)
    assert client.get_model_version_by_alias(name, "champion").version == "1"
    assert f"{name} version 1 from run" in capsys.readouterr().err
    trained(learning_rate=10.0)

    assert client.get_registered_model(name).aliases == {"champion": "1", "challenger": "2"}
    worse = client.get_model_version(name, "2")
    assert "is not better than" in worse.tags["tracking_callbacks.promotion.outcome"]
    assert "on the same data" in worse.tags["tracking_callbacks.promotion.outcome"]
    assert "; not champion: eval/loss" in capsys.readouterr().err


def test_an_evaluation_after_training_decides_where_training_had_none(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: Callable[..., Trainer],
    full_model: BertForSequenceClassification,
    tmp_path: Path,
) -> None:
    name = f"sentiment-{tmp_path.name}"
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, promote=Promotion("champion", by="eval/loss"))
    trainer = make_trainer(full_model, callback, eval_strategy="no")
    trainer.train()
    assert finished_run(callback).report().complete
    outcome = client.get_model_version(name, "1").tags["tracking_callbacks.promotion.outcome"]
    assert outcome.startswith("not compared: the run has no eval/loss at step")
    trainer.evaluate()
    assert finished_run(callback).report().complete

    assert client.get_model_version_by_alias(name, "champion").version == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a registered_model_name"),
        ({"registered_model_name": "m", "aliases": ["champion"]}, "is in aliases too"),
    ],
)
def test_a_promotion_that_cannot_work_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLflowTrainerCallback(promote=Promotion("champion", by="eval/f1"), **arguments)
