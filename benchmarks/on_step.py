"""What ``MLflowSB3Callback`` adds to a training step, compared with a callback that does nothing.

    python benchmarks/on_step.py

Runs a real ``learn()`` over an environment that costs next to nothing, with one and with sixteen copies of it, and
times each ``on_step`` call: separately for steps in which no episode ends, which is what every step costs, and for all
steps, including the ends of episodes and their points. Exits with 1 if a step without an episode end costs more than
8 µs with one environment, or 2 µs per environment with sixteen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks.sb3 import MLflowSB3Callback

EPISODE_LENGTH = 250
LIMITS = {1: 8.0, 16: 2.0 * 16}  # µs per step


class Market(gymnasium.Env):
    """A market that costs next to nothing, with an account value in its infos."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(3)
    observation = np.zeros(4, np.float32)

    def reset(self, *, seed=None, options=None):
        self.day = 0
        return self.observation, {"portfolio_value": 1000.0}

    def step(self, action):
        self.day += 1
        info = {"portfolio_value": 1000.0 + self.day * 7 % 13}
        return self.observation, 0.1, False, self.day == EPISODE_LENGTH, info


class Empty(BaseCallback):
    """The empty callback, for comparison."""

    def _on_step(self) -> bool:
        return True


class Timed:
    """Times each ``on_step`` of a callback, separately for steps in which an episode ends."""

    def __init__(self, callback: BaseCallback) -> None:
        self.between: list[int] = []
        self.every: list[int] = []
        on_step = callback.on_step

        def timed() -> bool:
            began = time.perf_counter_ns()
            go_on = on_step()
            took = time.perf_counter_ns() - began
            self.every.append(took)
            if not callback.locals["dones"][0]:
                self.between.append(took)
            return go_on

        callback.on_step = timed


def measure(callback: BaseCallback, n_envs: int, steps: int, wrap: Callable[[VecEnv], VecEnv]) -> Timed:
    """Train for `steps` steps of all environments, and return the times of the callback's steps."""
    n_steps = 1000
    env = wrap(DummyVecEnv([Market] * n_envs))
    agent = PPO("MlpPolicy", env, n_steps=n_steps, batch_size=n_steps * n_envs, n_epochs=1, seed=0)
    timed = Timed(callback)
    agent.learn(steps * n_envs, callback=callback)
    return timed


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each training run (default: %(default)s)")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[VecEnv], VecEnv]] = {
        "bare": lambda env: env,
        "VecMonitor": VecMonitor,
        "VecNormalize": VecNormalize,
    }
    slow = False
    head = f"{'empty':>9}{'ours p50':>10}{'p99':>8}{'more per env':>14}{'mean with ends':>16}"
    print(f"on_step, {steps} steps, µs  {head}")
    with tempfile.TemporaryDirectory() as folder:
        tracker = MLflowTracker(
            f"sqlite:///{folder}/mlflow.db", "on_step", delivery=Delivery(journal_root=Path(folder, "journal"))
        )
        for n_envs, limit in LIMITS.items():
            for kind, wrap in kinds.items():
                empty = measure(Empty(), n_envs, steps, wrap)
                callback = MLflowSB3Callback(tracker, log_model=False)
                ours = measure(callback, n_envs, steps, wrap)
                assert callback.run is not None
                assert callback.run.flush(300).complete  # finish before the next measurement
                times = sorted(ours.between)
                p50, p99 = times[len(times) // 2] / 1000, times[len(times) * 99 // 100] / 1000
                cost = p50 - statistics.median(empty.between) / 1000
                slow |= cost > limit
                print(
                    f"{n_envs:3} env{'s' if n_envs > 1 else ' '}, {kind:16}"
                    f"{statistics.median(empty.between) / 1000:10.2f}{p50:10.2f}{p99:8.2f}{cost / n_envs:14.2f}"
                    f"{statistics.fmean(ours.every) / 1000:16.2f}"
                )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
