"""Environments and agents of other packages: ``make environments`` installs them, and without one its tests skip."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from markets import TINY, Store, callback_for
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor

UNSEEDED = TINY | {"seed": None}  # these environments cannot be seeded by SB3


def check_complete(store: Store, callback: Any, folder: Path, *, count: int) -> Any:
    """Check that a run of PPO holds its params, updates and episodes; return it."""
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.params["algorithm"] == "PPO"
    assert run.data.params["n_envs"] == str(count)
    assert int(run.data.params["policy.parameters"]) > 0
    assert run.data.params["optimizer"]
    assert any(name.startswith("train/") and "loss" in name for name in run.data.metrics)
    episodes = store.episodes(callback.run, folder)
    assert len(episodes) > count
    assert all(float(row["reward"]) == pytest.approx(float(row["length"])) for row in episodes)  # 1 for each step
    assert run.data.metrics["train/cumulative_reward"] >= sum(float(row["reward"]) for row in episodes)
    return run


@pytest.mark.parametrize("monitored", [True, False], ids=["monitored", "bare"])
def test_supersuits_vectors_lose_nothing(store: Store, tmp_path: Path, monitored: bool) -> None:
    supersuit = pytest.importorskip("supersuit")
    pettingzoo_utils = pytest.importorskip("pettingzoo.utils.env")

    class Poles(pettingzoo_utils.ParallelEnv):
        """Two poles, each balanced by an agent."""

        metadata: ClassVar[dict[str, Any]] = {"name": "poles", "is_parallelizable": True}
        render_mode = None

        def __init__(self) -> None:
            self.possible_agents = ["left", "right"]
            self._poles = {agent: gym.make("CartPole-v1").unwrapped for agent in self.possible_agents}

        def observation_space(self, agent: str) -> gym.Space:
            return self._poles[agent].observation_space

        def action_space(self, agent: str) -> gym.Space:
            return self._poles[agent].action_space

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.agents = list(self.possible_agents)
            return {agent: self._poles[agent].reset(seed=seed)[0] for agent in self.agents}, {
                a: {} for a in self.agents
            }

        def step(self, actions: dict[str, int]) -> Any:
            stepped = {agent: self._poles[agent].step(action) for agent, action in actions.items()}
            over = any(one[2] for one in stepped.values())
            observations, rewards, infos = ({a: one[i] for a, one in stepped.items()} for i in (0, 1, 4))
            self.agents = [] if over else self.agents
            ended, cut = dict.fromkeys(stepped, over), dict.fromkeys(stepped, False)
            return observations, rewards, ended, cut, infos

    vectors = supersuit.pettingzoo_env_to_vec_env_v1(Poles())
    env = supersuit.concat_vec_envs_v1(vectors, 2, num_cpus=0, base_class="stable_baselines3")
    callback = callback_for(store)
    PPO("MlpPolicy", VecMonitor(env) if monitored else env, **UNSEEDED).learn(256, callback=callback)

    check_complete(store, callback, tmp_path, count=4)


class EnvPoolAdapter(VecEnvWrapper):
    """The adapter of EnvPool's own examples: no reset infos, and nothing to ask single environments with."""

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def reset(self) -> Any:
        return self.venv.reset()[0]

    def step_wait(self) -> Any:
        observations, rewards, ended, cut, said = self.venv.step(self.actions)
        dones = ended | cut
        infos: list[dict[str, Any]] = []
        for index in range(self.num_envs):
            infos.append({key: values[index] for key, values in said.items() if isinstance(values, np.ndarray)})
            if dones[index]:
                infos[index]["terminal_observation"] = observations[index]
                observations[index] = self.venv.reset(np.array([index]))[0]
        return observations, rewards, dones, infos


@pytest.mark.parametrize("monitored", [True, False], ids=["monitored", "bare"])
def test_envpool_behind_its_adapter_loses_nothing(store: Store, tmp_path: Path, monitored: bool) -> None:
    envpool = pytest.importorskip("envpool")
    env = EnvPoolAdapter(envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, seed=0))
    callback = callback_for(store)
    PPO("MlpPolicy", VecMonitor(env) if monitored else env, **UNSEEDED).learn(256, callback=callback)

    check_complete(store, callback, tmp_path, count=4)


def test_sbx_ppo_is_tracked_like_sb3s(store: Store, tmp_path: Path) -> None:
    sbx = pytest.importorskip("sbx")
    callback = callback_for(store)
    sbx.PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=0).learn(256, callback=callback)

    check_complete(store, callback, tmp_path, count=1)


def test_sbx_sac_is_tracked_like_sb3s(store: Store, tmp_path: Path) -> None:
    sbx = pytest.importorskip("sbx")
    callback = callback_for(store)
    small = {"learning_starts": 10, "batch_size": 8, "buffer_size": 1000, "policy_kwargs": {"net_arch": [4]}, "seed": 0}
    sbx.SAC("MlpPolicy", "Pendulum-v1", **small).learn(450, callback=callback)
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.params["algorithm"] == "SAC"
    assert int(run.data.params["policy.parameters"]) > 0
    assert run.data.params["optimizer"]
    assert "train/actor_loss" in run.data.metrics
    assert [row["length"] for row in store.episodes(callback.run, tmp_path)] == ["200", "200"]


def finrl(module: str) -> Any:
    """Return a module of FinRL, loaded from its file: the package itself imports the clients of brokers."""
    package = importlib.util.find_spec("finrl")
    if package is None or package.origin is None:
        pytest.skip("could not import 'finrl'")
    spec = importlib.util.spec_from_file_location("finrl_environment", Path(package.origin).parent / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def stocks(days: int = 24) -> pd.DataFrame:
    """Return what FinRL's environments read: a row for each day and stock, by the number of the day."""
    random = np.random.default_rng(3)
    prices = 100.0 * np.cumprod(1.0 + random.normal(0.001, 0.02, (days, 2)), axis=0)
    dates = [str(day)[:10] for day in pd.bdate_range("2024-01-01", periods=days)]
    rows = [
        {"date": dates[day], "tic": tic, "close": prices[day, stock], "macd": 0.1, "cov_list": np.eye(2)}
        for day in range(days)
        for stock, tic in enumerate(("AAA", "BBB"))
    ]
    return pd.DataFrame(rows, index=[day for day in range(days) for _ in range(2)])


COMMON = {"stock_dim": 2, "hmax": 100, "initial_amount": 1_000_000, "tech_indicator_list": ["macd"]}


def test_the_ratio_of_finrls_stock_trading_is_finrls(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    module = finrl("meta/env_stock_trading/env_stocktrading")
    costs = {"num_stock_shares": [0, 0], "buy_cost_pct": [0.001] * 2, "sell_cost_pct": [0.001] * 2}
    shape = {"state_space": 1 + 2 * 2 + 2, "action_space": 2, "reward_scaling": 1e-4}
    env = module.StockTradingEnv(stocks(), **COMMON, **costs, **shape, print_verbosity=1)
    check_ratio(store, env, "env:asset_memory", capsys)


def test_the_ratio_of_finrls_portfolio_is_finrls(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    module = finrl("meta/env_portfolio_allocation/env_portfolio")
    Path("results").mkdir()  # where it saves its pictures
    shape = {"state_space": 2, "action_space": 2, "reward_scaling": 1e-4, "transaction_cost_pct": 0.001}
    env = module.StockPortfolioEnv(stocks(), **COMMON, **shape)
    check_ratio(store, env, "env:portfolio_return_memory", capsys)


def check_ratio(store: Store, env: gym.Env, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Train in `env`, and compare the Sharpe ratios of its episodes with those that FinRL prints."""
    callback = callback_for(store)
    PPO("MlpPolicy", env, **TINY).learn(96, callback=callback)
    run = store.delivered(callback.run)
    printed = [float(text) for text in re.findall(r"^Sharpe:\s+(\S+)", capsys.readouterr().out, re.MULTILINE)]

    assert len(printed) >= 3
    assert run.data.params["sharpe.source"] == source
    ours = [value for _, value in store.points(callback.run, "episode/sharpe_ratio")]
    assert ours == pytest.approx(printed, abs=6e-4)  # one of them prints three digits
