"""A registered agent's Sharpe ratio is deflated by the versions before it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from markets import TINY, Market, Store, callback_for, market
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv

RATIO, DEFLATED = "tracking_callbacks.sharpe_ratio", "tracking_callbacks.deflated_sharpe_ratio"


def trained(store: Store, name: str, *, length: int, **arguments: Any) -> Any:
    """Register the agent of a training run whose evaluation is one episode of `length` days; return the run."""
    evaluation = EvalCallback(
        DummyVecEnv([lambda: Market(length, equity_key=arguments.pop("equity_key", "portfolio_value"))]),
        n_eval_episodes=1,
        eval_freq=32,
        verbose=0,
    )
    callback = callback_for(store, log_model=True, registered_model_name=name, **arguments)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=[evaluation, callback])
    return store.delivered(callback.run)


def account(store: Store, run: Any, folder: Path) -> np.ndarray:
    """Return the simple returns of the run's evaluation, from the table among its artifacts."""
    path = store.client.download_artifacts(run.info.run_id, "evaluation/eval/step-32/equity_curves.csv", str(folder))
    rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))
    equity = np.array([float(row["equity"]) for row in rows])
    return equity[1:] / equity[:-1] - 1.0


def deflated(returns: np.ndarray, ratios: list[float], trials: int) -> float:
    """Return equations 1 and 2 of Bailey and López de Prado (2014), with ratios per period."""
    ratio = returns.mean() / returns.std(ddof=1)
    scaled = (returns - returns.mean()) / returns.std()
    skew, kurtosis = np.mean(scaled**3), np.mean(scaled**4)
    normal, gamma = NormalDist(), 0.5772156649015329
    luck = np.std(ratios, ddof=1) * (
        (1 - gamma) * normal.inv_cdf(1 - 1 / trials) + gamma * normal.inv_cdf(1 - 1 / (trials * math.e))
    )
    spread = 1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2
    return normal.cdf((ratio - luck) * math.sqrt((returns.size - 1) / spread))


def test_the_versions_of_a_registered_agent_count_as_trials(store: Store, tmp_path: Path) -> None:
    name = f"desk-{tmp_path.name}"
    lengths = (40, 55, 70)
    runs = [trained(store, name, length=length) for length in lengths]
    returns = [account(store, run, tmp_path / str(index)) for index, run in enumerate(runs)]
    ratios = [float(one.mean() / one.std(ddof=1)) for one in returns]
    versions = [store.client.get_model_version(name, str(number)) for number in (1, 2, 3)]

    assert [float(one.tags[RATIO]) / math.sqrt(252) for one in versions] == pytest.approx(ratios, rel=1e-9)
    assert DEFLATED not in versions[0].tags
    for count in (2, 3):
        value, _, words = versions[count - 1].tags[DEFLATED].partition(" ")
        expected = deflated(returns[count - 1], ratios[:count], count)
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert words == f"over {count} versions"
        assert runs[count - 1].data.tags[DEFLATED] == versions[count - 1].tags[DEFLATED]
        said = f"- deflated Sharpe ratio {value} over {count} versions"
        assert said in versions[count - 1].description
        assert said in runs[count - 1].data.tags["mlflow.note.content"]
    assert "deflated" not in versions[0].description


def test_versions_of_other_programs_count_where_their_figures_are_linked(store: Store, tmp_path: Path) -> None:
    name = f"desk-{tmp_path.name}"
    experiment = store.client.create_experiment(f"other-{tmp_path.name}")
    store.client.create_registered_model(name)
    for figures in ({"eval/sharpe_ratio": 1.5, "eval/sharpe_adjusted_error": 0.9}, {"eval/accuracy": 0.5}):
        run_id = store.client.create_run(experiment).info.run_id
        model = store.client.create_logged_model(experiment, source_run_id=run_id)
        for key, value in figures.items():
            store.client.log_metric(run_id, key, value, model_id=model.model_id)
        store.client.create_model_version(name, f"models:/{model.model_id}", run_id, model_id=model.model_id)
    run = trained(store, name, length=60, trials=5)
    returns = account(store, run, tmp_path)
    ratio = float(returns.mean() / returns.std(ddof=1))

    value, _, words = run.data.tags[DEFLATED].partition(" ")
    assert float(value) == pytest.approx(deflated(returns, [ratio, 1.5 / math.sqrt(252)], 6), rel=1e-5)
    assert words == "over 2 versions and 5 trials"


def test_a_ratio_without_an_error_is_not_deflated(store: Store, tmp_path: Path) -> None:
    name = f"desk-{tmp_path.name}"
    for _ in range(2):
        trained(store, name, length=40, equity_key=None)
    versions = store.client.search_model_versions(f"name='{name}'")

    assert len(versions) == 2
    assert not [tag for version in versions for tag in version.tags if "sharpe" in tag]
