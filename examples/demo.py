"""The complete workflow on real data: train and track two models, load them back from the registry, compare.

    make demo

Fine-tunes a sentiment model and trains a trading agent, each with its own example script and one callback. Then loads
``models:/sentiment-lora@champion`` and ``models:/trading-ppo@challenger`` and checks that they predict as they did in
training. Runs go to the local default store, or to ``MLFLOW_TRACKING_URI`` if it is set. Each repetition creates new
runs and new model versions.
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
from tracking_callbacks.flavors import sb3 as sb3_flavor
from tracking_callbacks.settings import resolve_settings

HERE = Path(__file__).resolve().parent
PROBE = HERE.parent / "outputs" / "trading" / "probe.npz"


def run_example(script: str, *arguments: str) -> None:
    """Run one of the example scripts and pass its output through."""
    print(f"\n== python examples/{script} {' '.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


def check_sentiment_model(client: MlflowClient, version: ModelVersion) -> bool:
    """Compare the reloaded model's accuracy and F1 on the held-out sentences with what the run logged."""
    classify = mlflow.transformers.load_model(f"models:/{version.name}@champion")
    _, held_out = sentiment_data.load()
    answers = classify([sentence.text for sentence in held_out], batch_size=64)
    predicted = [sentiment_data.LABELS.index(answer["label"]) for answer in answers]
    actual = [sentence.label for sentence in held_out]
    logged = client.get_run(version.run_id).data.metrics
    same = True
    for name, reloaded in (("accuracy", accuracy_score(actual, predicted)), ("f1", f1_score(actual, predicted))):
        equal = bool(np.isclose(reloaded, logged[f"eval/{name}"], rtol=0, atol=1e-9))
        before = logged[f"eval/{name}"]
        print(f"{version.name} held-out {name}: logged {before:.4f}, reloaded {reloaded:.4f}, {_word(equal)}")
        same &= equal
    return same


def check_trading_agent(version: ModelVersion) -> bool:
    """Compare the reloaded agent's actions with those that the trained agent took on the same observations."""
    probe = np.load(PROBE)
    agent = sb3_flavor.load_model(f"models:/{version.name}/{version.version}")
    actions, _ = agent.predict(probe["observations"], deterministic=True)
    served = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}").predict(probe["observations"])
    equal = bool(np.array_equal(actions, probe["actions"]) and np.array_equal(served, probe["actions"]))
    print(f"{version.name}: {len(actions)} actions of the reloaded agent and of its pyfunc, {_word(equal)}")
    return equal


def _word(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"


def show(client: MlflowClient, rows: list[tuple[ModelVersion, tuple[str, ...]]]) -> None:
    """Print a line for each run: id, status, key metrics, model version."""
    print(f"\n{'run':34}{'status':10}{'model':30}metrics")
    for version, names in rows:
        run = client.get_run(version.run_id)
        metrics = ", ".join(f"{name} {run.data.metrics[name]:.4g}" for name in names if name in run.data.metrics)
        model = f"{version.name} v{version.version}"
        print(f"{run.info.run_id:34}{run.info.status:10}{model:30}{metrics}")


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
    good = check_sentiment_model(client, sentiment)
    good &= check_trading_agent(trading)
    show(
        client,
        [
            (sentiment, ("eval/accuracy", "eval/f1", "eval/loss", "train/loss")),
            (trading, ("validation/sharpe_ratio", "test/total_return", "test/benchmark_total_return")),
        ],
    )
    print(f"\n{time.monotonic() - began:.0f} s. To look at the runs: .venv/bin/tracking-callbacks ui")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
