"""Real trading environments: each episode's account starts at its own reset, wherever its value comes from."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import empyrical
import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from markets import TINY, Market, Store, callback_for
from sb3_contrib import ARS
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from tracking_callbacks import Delivery, MLflowTracker, Recording
from tracking_callbacks.sb3 import MLflowSB3Callback

STATISTICS = {
    "sharpe_ratio": empyrical.sharpe_ratio,
    "sortino_ratio": empyrical.sortino_ratio,
    "max_drawdown": empyrical.max_drawdown,
    "total_return": empyrical.cum_returns_final,
    "volatility": empyrical.annual_volatility,
}


class Witness(gym.Wrapper):
    """Keeps the return series of every episode, as the environment itself reports it."""

    def __init__(self, env: gym.Env, key: str | None) -> None:
        super().__init__(env)
        self.key = key
        self.series: list[list[float]] = []

    def reset(self, **arguments: Any) -> Any:
        observation, info = self.env.reset(**arguments)
        self.account = float(info[self.key]) if self.key else 0.0
        self.series.append([])
        return observation, info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.key:
            before, self.account = self.account, float(info[self.key])
            self.series[-1].append(self.account / before - 1.0)
        else:
            self.series[-1].append(float(reward))
        return observation, reward, terminated, truncated, info


class RewardIsReturn(gym.Env):
    """A bare environment without account or info; its reward is the day's return."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.day = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.day += 1
        reward = float(np.float32(self.np_random.normal(0.0005, 0.02)))  # as SB3 rounds it
        return np.zeros(2, np.float32), reward, False, self.day == 25, {}


def anytrading() -> gym.Env:
    import gym_anytrading

    prices = gym_anytrading.datasets.STOCKS_GOOGL
    return gym.make("stocks-v0", df=prices, window_size=5, frame_bound=(5, 35), disable_env_checker=True)


def gym_trading_env() -> gym.Env:
    with warnings.catch_warnings():  # importing it turns all warnings into errors
        environments = pytest.importorskip("gym_trading_env.environments", reason="wants a Flask that MLflow does not")
    prices = 100.0 * np.cumprod(1.0 + np.random.default_rng(0).normal(0.0, 0.01, 30))
    days = pd.date_range("2024-01-01", periods=30, freq="h")
    frame = pd.DataFrame({"open": prices, "high": prices, "low": prices, "close": prices, "volume": 1.0}, index=days)
    frame["feature_change"] = frame["close"].pct_change().fillna(0.0)
    return environments.TradingEnv(df=frame, positions=[-1, 0, 1], trading_fees=0.001, verbose=0)


@pytest.mark.parametrize(
    ("make", "key", "returns", "source"),
    [
        (anytrading, "total_profit", "auto", "info:total_profit (realised)"),
        (gym_trading_env, "portfolio_valuation", "auto", "info:portfolio_valuation"),
        (RewardIsReturn, None, "reward", "reward"),
    ],
    ids=["gym-anytrading", "gym-trading-env", "bare"],
)
def test_every_statistic_of_every_episode_equals_empyricals(
    store: Store, tmp_path: Path, make: Callable[[], gym.Env], key: str | None, returns: str, source: str
) -> None:
    witnesses = [Witness(make(), key) for _ in range(2)]
    env = VecNormalize(DummyVecEnv([lambda witness=witness: Monitor(witness) for witness in witnesses]))
    callback = callback_for(store, returns=returns)
    PPO("MlpPolicy", env, **TINY).learn(192, callback=callback)
    run = store.delivered(callback.run)
    rows = store.episodes(callback.run, tmp_path)

    assert run.data.params["sharpe.source"] == source
    assert len(rows) >= 6
    for env_index, witness in enumerate(witnesses):
        own = [row for row in rows if row["env"] == str(env_index)]
        for row, series in zip(own, witness.series, strict=False):
            for name, statistic in STATISTICS.items():
                expected = statistic(np.array(series))
                if row[name]:
                    assert float(row[name]) == pytest.approx(expected, rel=1e-9, abs=1e-9), name
                else:
                    assert not math.isfinite(expected) or np.ptp(series) == 0.0, name


def test_sixteen_environments_are_tracked_separately(store: Store, tmp_path: Path) -> None:
    lengths = range(3, 19)
    env = DummyVecEnv([lambda length=length: Market(length) for length in lengths])
    callback = callback_for(store)
    PPO("MlpPolicy", env, n_steps=32, batch_size=512, n_epochs=1, seed=0).learn(512, callback=callback)
    run = store.delivered(callback.run)
    rows = store.episodes(callback.run, tmp_path)

    assert run.data.params["n_envs"] == "16"
    assert len(rows) == sum(32 // length for length in lengths)
    for row in rows:
        assert int(row["length"]) == lengths[int(row["env"])]
    for index, length in enumerate(lengths):
        own = [float(row["total_return"]) for row in rows if row["env"] == str(index)]
        markets = [Market(length).equities(number + 1) for number in range(len(own))]
        assert own == pytest.approx([equities[-1] / equities[0] - 1.0 for equities in markets], rel=1e-9)


def test_each_statistic_of_a_rollout_is_that_of_its_episodes(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", DummyVecEnv([Market]), **TINY).learn(32, callback=callback)
    run = store.delivered(callback.run)
    ratios = np.array([float(row["sharpe_ratio"]) for row in store.episodes(callback.run, tmp_path)])
    expected = {
        "mean": ratios.mean(),
        "min": ratios.min(),
        "max": ratios.max(),
        "std": ratios.std(),
        "count": float(ratios.size),
    }

    assert {name: run.data.metrics[f"rollout/episode_sharpe_ratio_{name}"] for name in expected} == pytest.approx(
        expected, rel=1e-9
    )


def test_a_changed_number_of_environments_is_reported_and_training_continues(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    callback = callback_for(store)
    agent = PPO("MlpPolicy", Market(), **TINY).learn(32, callback=callback)
    agent.save("agent.zip")
    grown = PPO.load("agent.zip", env=DummyVecEnv([lambda: Market(length=10)] * 3))
    grown.learn(96, callback=callback, reset_num_timesteps=False)
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.tags["param_drift.n_envs"]
    assert "under way when their environment was reset or replaced" in run.data.tags["episodes.left_out"]
    assert run.data.metrics["train/cumulative_reward"] == 320.0 + 960.0
    assert "tracking failed" not in caplog.text


def test_the_run_says_that_an_algorithm_passes_no_rewards_to_callbacks(store: Store) -> None:
    callback = callback_for(store)
    ARS("LinearPolicy", DummyVecEnv([lambda: Monitor(Market())]), n_delta=1, seed=0).learn(40, callback=callback)
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.tags["episodes.left_out"] == "all episodes: ARS tells its callbacks no rewards"
    assert run.data.params["n_delta"] == "1"
    assert "time/total_timesteps" in run.data.metrics


def test_episodes_too_short_for_a_ratio_are_counted(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", DummyVecEnv([lambda: Market(length=1)]), **TINY).learn(32, callback=callback)
    run = store.delivered(callback.run)

    assert run.data.metrics["episode/length"] == 1.0
    assert run.data.tags["sharpe.left_out"].endswith("32 × fewer than two returns, or all of them equal")


@pytest.mark.parametrize(
    ("asked", "said"), [({}, False), ({"periods_per_year": 12}, True), ({"returns": "reward"}, True)]
)
def test_only_an_account_or_a_user_that_asks_for_a_ratio_has_episodes_without_one_counted(
    store: Store, asked: dict[str, Any], said: bool
) -> None:
    callback = callback_for(store, **asked)
    PPO("MlpPolicy", Monitor(gym.make("CartPole-v1")), **TINY).learn(64, callback=callback)

    assert ("sharpe.left_out" in store.delivered(callback.run).data.tags) is said


def test_episodes_with_nan_or_infinite_rewards_are_counted(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", DummyVecEnv([lambda: Market(reward=math.nan)]), **TINY).learn(32, callback=callback)
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.tags["reward.left_out"].startswith("episodes without a reward: 3 × NaN or infinite rewards")
    assert "rollout/episode_reward_mean" not in run.data.metrics


def test_the_episode_table_is_logged_while_training_is_still_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking_callbacks._episodes.episode_log._TABLE_SECONDS", 0.0)
    tracker = MLflowTracker("sqlite:///m.db", delivery=Delivery(journal_root="journal", offline=True))
    found: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            tables = sorted(tmp_path.glob("journal/**/episodes.csv"))
            found.append(len(tables[-1].read_text(encoding="utf-8").splitlines()) - 1 if tables else 0)

    callbacks = [MLflowSB3Callback(tracker, log_model=False), Look()]
    PPO("MlpPolicy", DummyVecEnv([Market]), **TINY).learn(192, callback=callbacks)

    # After 3, 6, 9, 12, 16 and 19 episodes; the last time the table had grown by less than a quarter.
    assert found == [3, 6, 9, 12, 16, 16]


class Prices(Market):
    """A market that plays part of a frame of prices, as gym-anytrading does."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        days = pd.date_range("2020-01-01", periods=100, name="Date")
        self.df = pd.DataFrame({"Close": np.arange(100.0)}, index=days)
        self.frame_bound, self.window_size = (first, last), 5


def prices(first: int, last: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Prices(first, last))])


def test_the_prices_of_training_and_evaluation_are_inputs_and_their_equity_curves_are_kept(
    server: Any, shared_journal: Path, store: Store, tmp_path: Path
) -> None:
    tracker = MLflowTracker(
        server.uri, "prices", record=Recording(sample_rows=True), delivery=Delivery(journal_root=shared_journal)
    )
    callback = MLflowSB3Callback(tracker, log_model=False)
    evaluation = EvalCallback(prices(60, 100), n_eval_episodes=3, eval_freq=32, verbose=0)
    PPO("MlpPolicy", prices(5, 60), **TINY).learn(64, callback=[callback, evaluation])
    run = store.delivered(callback.run)

    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    rows = {context: json.loads(dataset.profile)["num_rows"] for context, dataset in found.items()}
    assert rows == {"training": 60, "evaluation": 45}
    assert {dataset.name for dataset in found.values()} == {"Prices prices"}

    def read(path: str) -> Any:
        return Path(store.client.download_artifacts(run.info.run_id, path, str(tmp_path))).read_text()

    sample = json.loads(read("data/sample_eval.json"))
    assert (sample["columns"], sample["data"][0], len(sample["data"])) == (
        ["Date", "Close"], ["2020-02-25 00:00:00", 55.0], 20,
    )  # fmt: skip
    curves = pd.read_csv(io.StringIO(read("equity_curves.csv")))
    assert curves["episode"].unique().tolist() == [2, 3, 4, 5, 6]
    last = curves[curves["episode"] == 6]
    assert last["equity"].tolist() == pytest.approx(Market().equities(6), rel=1e-12)
    assert last["step"].tolist() == list(range(11))
    evaluated = pd.read_csv(io.StringIO(read("evaluation/eval/step-64/equity_curves.csv")))
    assert evaluated["episode"].unique().tolist() == [1, 2, 3]
    assert store.client.download_artifacts(run.info.run_id, "evaluation/eval/step-64/equity_curves.png", str(tmp_path))


def test_with_record_false_a_run_holds_only_params_and_metrics(server: Any, shared_journal: Path, store: Store) -> None:
    tracker = MLflowTracker(server.uri, "bare-agents", record=False, delivery=Delivery(journal_root=shared_journal))
    callback = MLflowSB3Callback(tracker)
    PPO("MlpPolicy", prices(5, 60), **TINY).learn(64, callback=callback)
    run = store.delivered(callback.run)

    assert (run.data.params["algorithm"], "episode/reward" in run.data.metrics) == ("PPO", True)
    assert [entry.path for entry in store.client.list_artifacts(run.info.run_id)] == []
    assert (run.inputs.dataset_inputs, run.outputs.model_outputs) == ([], [])
    assert {tag.split(".")[0] for tag in run.data.tags} == {"mlflow", "tracking_callbacks"}
