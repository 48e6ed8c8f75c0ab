"""``mlflow models serve`` answers the input example of a registered model with what the trained one predicts."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from stable_baselines3 import PPO
from transformers import PreTrainedTokenizerFast, Trainer

from servers import Server, serving
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback
from tracking_callbacks.sb3 import MLflowSB3Callback


@pytest.fixture(autouse=True)
def registry(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)


def served(name: str, folder: Path) -> tuple[Any, Any]:
    """Return the input example of the champion, as it is stored, and what the scoring server answers to it."""
    stored = mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(folder / "stored"))
    example = Path(stored, "serving_input_example.json").read_bytes()
    with serving(f"models:/{name}@champion", folder) as uri:
        request = urllib.request.Request(f"{uri}/invocations", example, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(example), json.load(answer)["predictions"]


def test_a_served_pipeline_answers_the_first_row_of_the_evaluation(
    tracker: MLflowTracker,
    make_trainer: Callable[..., Trainer],
    full_model: Any,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    name = f"served-{tmp_path.name}"
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, aliases=["champion"])
    trainer = make_trainer(full_model, callback, eval_strategy="steps", eval_steps=6)
    trainer.train()
    example, predictions = served(name, tmp_path)
    (text,) = example["inputs"]
    with torch.no_grad():
        probabilities = full_model.eval()(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]

    assert text == tokenizer.decode(trainer.eval_dataset[0]["input_ids"], skip_special_tokens=True)
    assert predictions == [
        {
            "label": full_model.config.id2label[int(probabilities.argmax())],
            "score": pytest.approx(float(probabilities.max()), abs=1e-6),
        }
    ]


def test_a_served_agent_answers_with_its_actions(tracker: MLflowTracker, tmp_path: Path) -> None:
    name = f"served-{tmp_path.name}"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1)
    model.learn(64, callback=MLflowSB3Callback(tracker, registered_model_name=name, aliases=["champion"]))
    example, predictions = served(name, tmp_path)

    assert predictions == model.predict(example["inputs"], deterministic=True)[0].tolist()
