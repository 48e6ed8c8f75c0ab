"""The complete workflow on real data: train and track two models, load them back from the registry, compare.

    make demo

Fine-tunes a sentiment model and trains a trading agent, each with its own example script and one callback. Then loads
``models:/sentiment-lora@champion`` and ``models:/trading-ppo@challenger`` and checks that they predict as they did in
training. The end of the output and ``outputs/demo.html`` show both runs. Runs go to the local default store, or to
``MLFLOW_TRACKING_URI`` if it is set. Each repetition creates new runs and new model versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from sklearn.metrics import accuracy_score, f1_score

import sentiment_data
import train_rl_agent
import train_sentiment_model
from demo_page import Check, Trained, print_page, write_page
from tracking_callbacks.flavors import sb3 as sb3_flavor
from tracking_callbacks.settings import resolve_settings

HERE = Path(__file__).resolve().parent
PROBE = HERE.parent / "outputs" / "trading" / "probe.npz"
PAGE = HERE.parent / "outputs" / "demo.html"


def run_example(script: str, *arguments: str) -> None:
    """Run one of the example scripts and pass its output through."""
    print(f"\n== python examples/{script} {' '.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


def check_sentiment_model(client: MlflowClient, version: ModelVersion) -> list[Check]:
    """Compare the reloaded model's accuracy and F1 on the held-out sentences with what the run logged."""
    classify = mlflow.transformers.load_model(f"models:/{version.name}@champion")
    _, held_out = sentiment_data.load()
    answers = classify([sentence.text for sentence in held_out], batch_size=64)
    predicted = [sentiment_data.LABELS.index(answer["label"]) for answer in answers]
    actual = [sentence.label for sentence in held_out]
    logged = client.get_run(version.run_id).data.metrics
    checks = []
    for name, reloaded in (("accuracy", accuracy_score(actual, predicted)), ("f1", f1_score(actual, predicted))):
        before = logged[f"eval/{name}"]
        equal = bool(np.isclose(reloaded, before, rtol=0, atol=1e-9))
        checks.append(
            Check(f"held-out {name}: logged {before:.4f}, reloaded {reloaded:.4f}, {_word(equal)}", passed=equal)
        )
    return checks


def check_trading_agent(version: ModelVersion) -> list[Check]:
    """Compare the reloaded agent's actions with those that the trained agent took on the same observations."""
    probe = np.load(PROBE)
    agent = sb3_flavor.load_model(f"models:/{version.name}/{version.version}")
    actions, _ = agent.predict(probe["observations"], deterministic=True)
    served = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}").predict(probe["observations"])
    equal = bool(np.array_equal(actions, probe["actions"]) and np.array_equal(served, probe["actions"]))
    text = f"{len(actions)} actions of the reloaded agent and of its pyfunc, {_word(equal)}"
    return [Check(text, passed=equal)]


def _word(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"


def main() -> int:
    """Train and check both models; return 0 if the reloaded models predict as they did in training."""
    began = time.monotonic()
    settings = resolve_settings()
    run_example("train_sentiment_model.py")
    run_example("train_rl_agent.py", "--probe-file", str(PROBE))

    print("\n== loading both models back from the registry\n", flush=True)
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    client = MlflowClient()
    sentiment = client.get_model_version_by_alias(train_sentiment_model.REGISTERED_MODEL, "champion")
    trading = client.get_model_version_by_alias(train_rl_agent.REGISTERED_MODEL, train_rl_agent.CHALLENGER)
    trained = [
        Trained("A sentiment model", sentiment, check_sentiment_model(client, sentiment)),
        Trained("A trading agent", trading, check_trading_agent(trading)),
    ]
    write_page(client, settings.masked_uri, trained, PAGE)
    print_page(client, trained)
    print(f"{time.monotonic() - began:.0f} s. The same with pictures: {PAGE}")
    print("To look at the runs: .venv/bin/tracking-callbacks ui")
    return 0 if all(check.passed for one in trained for check in one.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
