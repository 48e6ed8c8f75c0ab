"""Train PPO to trade Google stock, tracked by one callback.

    python examples/train_rl_agent.py
    python examples/train_rl_agent.py --config examples/config/mlflow_config.yaml --timesteps 20000

Takes about a minute on two cores. The run goes to the experiment RLAgentTraining_PPO; the agent is registered as
``trading-ppo`` with the alias ``champion``, together with the statistics that normalize its observations.

The reward of stocks-v0 ignores its trading fees (1.5 % of each round trip), but its account value includes them:
rewards rise while wealth melts away. This comes from the environment, not from the tracker; the run shows both curves.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gym_anytrading  # registers stocks-v0
import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from tracking_callbacks import MLflowTracker, Recording, finance
from tracking_callbacks.sb3 import MLflowSB3Callback

EXPERIMENT = "RLAgentTraining_PPO"
REGISTERED_MODEL = "trading-ppo"
ALIAS = "champion"
WINDOW = 30  # days that the agent sees
PRICES = gym_anytrading.datasets.STOCKS_GOOGL  # daily, 2009 to 2018
TRAINING_DAYS = (WINDOW, int(len(PRICES) * 0.8))
HELD_OUT_DAYS = (TRAINING_DAYS[1], len(PRICES))


class Progress(BaseCallback):
    """Prints a line every few seconds."""

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._last = time.monotonic()

    def _on_step(self) -> bool:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            rewards = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            mean = f"mean episode reward {np.mean(rewards):8.1f}" if rewards else "first episodes"
            print(f"{self.num_timesteps:7d} steps, {mean}", flush=True)
        return True


def trading_env(days: tuple[int, int]) -> gymnasium.Env[NDArray[np.float32], np.int64]:
    """Return the market of the trading days `days`; an episode goes through all of them once."""
    return gymnasium.make("stocks-v0", df=PRICES, window_size=WINDOW, frame_bound=days, disable_env_checker=True)


def play(agent: PPO, days: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64], list[float]]:
    """Let `agent` trade through `days` once.

    Returns:
        Its raw observations, its deterministic actions on them, and its wealth after each day, from 1.0 on.
    """
    env = trading_env(days)
    normalizer = agent.get_vec_normalize_env()
    assert normalizer is not None
    observation, info = env.reset(seed=0)
    observations, actions, wealth = [], [], [float(info["total_profit"])]
    truncated = False
    while not truncated:
        action, _ = agent.predict(normalizer.normalize_obs(observation), deterministic=True)
        observations.append(observation)
        actions.append(action)
        observation, _, _, truncated, info = env.step(int(action))
        wealth.append(float(info["total_profit"]))
    return np.stack(observations), np.stack(actions), wealth


def train(tracker: MLflowTracker, timesteps: int, seed: int) -> tuple[PPO, MLflowSB3Callback]:
    """Train an agent; return it and the callback, which knows the run."""
    torch.set_num_threads(1)  # in networks this small, threads cost more than they gain
    env = VecNormalize(make_vec_env(lambda: trading_env(TRAINING_DAYS), n_envs=4, seed=seed))
    held_out = VecNormalize(make_vec_env(lambda: trading_env(HELD_OUT_DAYS), seed=seed), training=False)
    # In the run, SB3 logs the rewards under eval/…; our callback adds Sharpe ratio, drawdown and similar statistics.
    evaluation = EvalCallback(held_out, n_eval_episodes=1, eval_freq=max(timesteps // 4 // env.num_envs, 1), verbose=0)
    agent = PPO("MlpPolicy", env, n_steps=512, batch_size=256, ent_coef=0.01, learning_rate=1e-3, seed=seed)
    callback = MLflowSB3Callback(tracker, registered_model_name=REGISTERED_MODEL, aliases=[ALIAS])
    agent.learn(timesteps, callback=[callback, evaluation, Progress()])
    return agent, callback


def main() -> None:
    """Train, trade the held-out years, and print where the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file with tracking_uri and other settings")
    parser.add_argument("--timesteps", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--probe-file",
        type=Path,
        help="save the held-out years' observations and the agent's actions here (.npz)",
    )
    options = parser.parse_args()

    tracker = MLflowTracker(
        experiment_name=EXPERIMENT,
        config=options.config,
        record=Recording(sample_rows=True, system_metrics=True),  # the prices are public
    )
    agent, callback = train(tracker, options.timesteps, options.seed)
    observations, actions, wealth = play(agent, (WINDOW, len(PRICES)))
    _, _, held_out_wealth = play(agent, HELD_OUT_DAYS)
    if options.probe_file is not None:
        options.probe_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(options.probe_file, observations=observations, actions=actions)
    sharpe = finance.sharpe_ratio(finance.returns_from_equity(held_out_wealth))
    print(f"all years: bought on {np.mean(actions):.0%} of {len(actions)} days, wealth × {wealth[-1]:.2f}")
    print(f"held-out years: wealth × {held_out_wealth[-1]:.2f}, Sharpe ratio {sharpe}")
    if callback.run is not None:
        report = callback.run.flush()
        print(f"run {callback.run.run_id}: {report.delivered} records delivered, {report.pending} pending")


if __name__ == "__main__":
    main()
