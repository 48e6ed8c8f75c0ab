"""Toy environments and the store for the tests of the SB3 callback."""

from __future__ import annotations

import csv
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium import spaces
from mlflow import MlflowClient
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from tracking_callbacks import MLflowTracker, Run
from tracking_callbacks.sb3 import MLflowSB3Callback

TINY = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}, "seed": 0}


class Position(enum.Enum):
    LONG = 1


class Market(gym.Env):
    """A market of `length` days; the account of episode k begins with 100 * k and follows a fixed random walk."""

    def __init__(self, length: int = 10, reward: float = 10.0, equity_key: str | None = "portfolio_value") -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.reward, self.equity_key = length, reward, equity_key
        self.episode = self.day = 0

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"prices": pd.DataFrame({"close": [1.0]}), "position": Position.LONG}
        return info | ({self.equity_key: float(self.equities()[self.day])} if self.equity_key else {})

    def equities(self, episode: int | None = None) -> np.ndarray:
        number = self.episode if episode is None else episode
        returns = np.random.default_rng(number).normal(0.001, 0.02, self.length)
        return 100.0 * number * np.concatenate(([1.0], np.cumprod(1.0 + returns)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episode += 1
        self.day = 0
        return np.zeros(2, np.float32), self._info()

    def step(self, action: Any) -> Any:
        self.day += 1
        return np.full(2, 0.5, np.float32), self.reward, False, self.day >= self.length, self._info()


class Stop(BaseCallback):
    def __init__(self, at: int, error: Exception | None = None) -> None:
        super().__init__()
        self.at, self.error = at, error

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at and self.error is not None:
            raise self.error
        return self.num_timesteps < self.at


class Store:
    """The real server that a test logs to and reads from."""

    def __init__(self, tracker: MLflowTracker, client: MlflowClient) -> None:
        self.tracker, self.client = tracker, client

    def delivered(self, run: Run | None) -> Any:
        assert run is not None
        assert run.flush(90).complete
        return self.client.get_run(run.run_id)

    def points(self, run: Run, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.run_id, key)]

    def episodes(self, run: Run, folder: Path) -> list[dict[str, str]]:
        path = self.client.download_artifacts(run.run_id, "episodes.csv", str(folder))
        return list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))


def callback_for(store: Store, **arguments: Any) -> MLflowSB3Callback:
    return MLflowSB3Callback(store.tracker, **{"log_model": False} | arguments)


def market(count: int = 1, vec_env: Callable[..., Any] = DummyVecEnv, **arguments: Any) -> Any:
    return vec_env([lambda: Market(**arguments) for _ in range(count)])
