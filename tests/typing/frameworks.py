"""How users call the callbacks: never run, only read by mypy in `make check`, where the frameworks are installed."""

from __future__ import annotations

from stable_baselines3 import PPO
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from tracking_callbacks import MLflowTracker, Promotion
from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback
from tracking_callbacks.integrations.optuna import OptunaCallback
from tracking_callbacks.sb3 import MLflowSB3Callback


def right(model: PreTrainedModel, agent: PPO, tracker: MLflowTracker) -> None:
    """Pass the callbacks where the frameworks take theirs."""
    callback = MLflowTrainerCallback(
        tracker,
        run_name="a",
        registered_model_name="sentiment",
        aliases=["champion"],
        promote=Promotion("champion", by="eval/f1"),
    )
    taken: TrainerCallback = callback
    Trainer(model, TrainingArguments("out"), callbacks=[taken], compute_metrics=ClassificationMetrics(["a", "b"]))
    agent.learn(10, callback=MLflowSB3Callback(log_model="best", returns="reward"))
    OptunaCallback(tracker)


def wrong(tracker: MLflowTracker) -> None:
    """Each line is an error."""
    MLflowTrainerCallback(MLflowTracker, run_name=1)  # type: ignore[arg-type]
    MLflowTrainerCallback(model_name="a")  # type: ignore[call-arg]
    MLflowSB3Callback(tracker, log_model="last")  # type: ignore[arg-type]
    MLflowSB3Callback(tracker, periods_per_year="252")  # type: ignore[arg-type]
