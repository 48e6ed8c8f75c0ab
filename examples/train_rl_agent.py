"""Train PPO to trade Google stock after fees, tracked by one callback.

    python examples/train_rl_agent.py
    python examples/train_rl_agent.py --config examples/config/mlflow_config.yaml --timesteps 20000 --seed 1
    python examples/train_rl_agent.py --walk-forward 4

Takes about a minute on two cores. The days are split by date: the agent learns on the first 60 %, the best of its
evaluations on the next 20 % is kept (by Sharpe ratio), and the registered agent plays the last 20 % once. Nothing is
chosen by those.

The run goes to the experiment RLAgentTraining_PPO. The agent is registered as ``trading-ppo`` with the alias
``challenger``, and becomes ``champion`` only if its Sharpe ratio on the validation days is higher than the champion's.

With ``--walk-forward N`` the last 40 % of the days become N windows, one after the other. For each of them an agent is
trained on the days before it, chosen on the last of these (as many as a fifth of all days), and plays the window once.
The N runs are nested under one, which shows what the N agents make of their windows in a row. Nothing is registered.
Each window takes about a minute.

Do not expect to get rich: the run shows how far the figures of the training days are above those of days that the
agent has never seen, and what buying and holding the stock would have made.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import gym_anytrading.datasets
import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from tracking_callbacks import MLflowTracker, Recording, Run, finance
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.sb3 import MLflowSB3Callback
from trading_env import TradingEnv

EXPERIMENT = "RLAgentTraining_PPO"
REGISTERED_MODEL = "trading-ppo"
CHALLENGER, CHAMPION = "challenger", "champion"
SCORE = "validation_sharpe_ratio"  # tag of a registered version
WINDOW = 30  # daily returns that the agent sees
# Without it the agent learns the training days by heart: it made fifteen times its money there, and lost on the others.
# Of 0, 0.01, 0.02, 0.03 and 0.1, this has the highest mean Sharpe ratio on the validation days (three seeds).
WEIGHT_DECAY = 0.02
FEE = 0.001  # of the amount, for each purchase and each sale
PRICES = gym_anytrading.datasets.STOCKS_GOOGL["Adj Close"]  # daily, 2009 to 2018
DAYS = len(PRICES)
TITLES = {"final_train": "training", "validation": "validation", "test": "held-out"}


class Split(NamedTuple):
    """The days that an agent learns on, is chosen on, and is judged on: first day, and the day after the last one."""

    final_train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def split(test: int, end: int = DAYS) -> Split:
    """Return the split whose test begins on the day `test`; the fifth of all days before that is for validation."""
    validation = test - DAYS // 5
    return Split((WINDOW, validation), (validation, test), (test, end))


def windows(count: int) -> list[Split]:
    """Return the splits of a walk-forward. Each test ends on the day on whose close the next one begins to trade."""
    edges = np.linspace(int(DAYS * 0.6), DAYS - 1, count + 1).astype(int).tolist()
    return [split(first, last + 1) for first, last in itertools.pairwise(edges)]


SINGLE = split(int(DAYS * 0.8))


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
            mean = f"wealth of an episode × {np.exp(np.mean(rewards)):8.2f}" if rewards else "first episodes"
            print(f"{self.num_timesteps:7d} steps, {mean}", flush=True)
        return True


def trading_env(days: tuple[int, int]) -> TradingEnv:
    """Return the market of the trading days `days`; an episode goes through all of them once."""
    return TradingEnv(PRICES, days, window=WINDOW, fee=FEE)


def train(
    tracker: MLflowTracker,
    timesteps: int,
    seed: int,
    days: Split = SINGLE,
    registered_model_name: str | None = REGISTERED_MODEL,
) -> MLflowSB3Callback:
    """Train an agent and register the best one of its evaluations; return the callback, which knows the run."""
    torch.set_num_threads(1)  # in networks this small, threads cost more than they gain
    env = make_vec_env(lambda: trading_env(days.final_train), n_envs=4, seed=seed)
    validation = make_vec_env(lambda: trading_env(days.validation), seed=seed)
    evaluation = EvalCallback(validation, n_eval_episodes=1, eval_freq=timesteps // 16 // env.num_envs, verbose=0)
    agent = PPO(
        "MlpPolicy",
        env,
        n_steps=512,
        batch_size=256,
        ent_coef=0.01,
        gamma=0.9,
        seed=seed,
        policy_kwargs={"optimizer_kwargs": {"weight_decay": WEIGHT_DECAY}},
    )
    callback = MLflowSB3Callback(
        tracker,
        log_model="best",
        best_by="sharpe_ratio",
        registered_model_name=registered_model_name,
        aliases=[] if registered_model_name is None else [CHALLENGER],
    )
    agent.learn(timesteps, callback=[callback, evaluation, Progress()])
    return callback


def play(agent: BaseAlgorithm, days: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64], list[float]]:
    """Let `agent` trade through `days` once.

    Returns:
        Its observations, its deterministic actions on them, and its account after each day, from 1.0 on.
    """
    env = trading_env(days)
    observation, info = env.reset(seed=0)
    observations, actions, account = [], [], [float(info["portfolio_value"])]
    truncated = False
    while not truncated:
        action, _ = agent.predict(observation, deterministic=True)
        observations.append(observation)
        actions.append(action)
        observation, _, _, truncated, info = env.step(np.int64(action))
        account.append(float(info["portfolio_value"]))
    return np.stack(observations), np.stack(actions), account


def judge(run: Run, agent: BaseAlgorithm, parts: Split = SINGLE) -> dict[str, dict[str, float]]:
    """Play the days of all three parts once, log the statistics under their names, and return them."""
    judged = {}
    for name, days in parts._asdict().items():
        returns = finance.returns_from_equity(play(agent, days)[2])
        judged[name] = statistics_of(returns, finance.returns_from_equity(PRICES.iloc[days[0] : days[1]]))
        run.log_metrics({f"{name}/{key}": value for key, value in judged[name].items()})
    return judged


def statistics_of(returns: NDArray[np.float64], held: NDArray[np.float64]) -> dict[str, float]:
    """Return the statistics of an account, with the Sharpe ratio of buying and holding, and both standard errors."""
    errors = {
        "sharpe_standard_error": finance.sharpe_standard_error(returns),
        "benchmark_sharpe_ratio": finance.sharpe_ratio(held),
        "benchmark_sharpe_standard_error": finance.sharpe_standard_error(held),
    }
    known = {name: value for name, value in errors.items() if value is not None}
    return finance.performance(returns, benchmark=held) | known


def report(judged: dict[str, dict[str, float]]) -> str:
    """Return the run's description: what the agent makes of each part of the days, next to buying and holding."""
    rows = [
        f"| {title} | {one['total_return']:+.1%} | {one['benchmark_total_return']:+.1%} "
        f"| {one.get('sharpe_ratio', 0.0):.2f} ± {one.get('sharpe_standard_error', 0.0):.2f} |"
        for title, one in ((TITLES[name], one) for name, one in judged.items())
    ]
    gap = judged["final_train"].get("sharpe_ratio", 0.0) - judged["test"].get("sharpe_ratio", 0.0)
    head = "| days | return after fees | buying and holding | Sharpe ratio ± standard error |"
    return "\n".join(
        [head, "| --- | ---: | ---: | ---: |", *rows, "", f"Sharpe ratio, training above held-out: {gap:+.2f}"]
    )


def walk_forward(tracker: MLflowTracker, count: int, timesteps: int, seed: int) -> Run:
    """Train, choose and judge an agent for each of `count` windows, in runs that are nested under the one returned."""
    splits = windows(count)
    rows = []
    with tracker.start_run(f"walk-forward of {count} windows, seed {seed}") as parent:
        parent.log_params({"windows": count, "timesteps": timesteps, "seed": seed, "fee": FEE})
        for number, days in enumerate(splits, start=1):
            dates = [f"{PRICES.index[day]:%Y-%m-%d}" for day in range(*days.test)]
            print(f"window {number} of {count}: {dates[0]} to {dates[-1]}", flush=True)
            with tracker.start_run(f"window {number}", parent=parent) as run:
                train(tracker, timesteps, seed, days, None)
                agent = best_agent(run)
                run.set_tags({"mlflow.note.content": report(judge(run, agent, days))})
            _, actions, account = play(agent, days.test)
            account[-1] *= 1.0 - FEE * float(actions[-1])  # the next agent begins in cash, so this one sells
            returns = finance.returns_from_equity(account)
            held = finance.returns_from_equity(PRICES.iloc[slice(*days.test)])
            rows += zip(itertools.repeat(number), dates[1:], returns, held)
        chained = pd.DataFrame(rows, columns=["window", "date", "return", "benchmark_return"])
        for column, name in (("return", "equity"), ("benchmark_return", "benchmark_equity")):
            chained[name] = (1.0 + chained[column]).cumprod()
        parent.log_table(chained, "walk_forward.json")
        for day, row in enumerate(chained.itertuples(), start=1):
            values = {"equity": row.equity, "benchmark_equity": row.benchmark_equity}
            parent.log_metrics({f"walk_forward/{name}": value for name, value in values.items()}, step=day)
        judged = statistics_of(chained["return"].to_numpy(), chained["benchmark_return"].to_numpy())
        parent.log_metrics({f"walk_forward/{name}": value for name, value in judged.items()})
        said = chained_report(judged, count, len(chained))
        parent.set_tags({"mlflow.note.content": said})
        print(said)
    return parent


def best_agent(run: Run) -> BaseAlgorithm:
    """Return the agent that `run` has logged."""
    if not run.flush().complete:
        raise SystemExit("the agent is not delivered yet; see tracking-callbacks status")
    (model,) = MlflowClient(run.settings.tracking_uri).get_run(run.run_id).outputs.model_outputs
    return flavor.load_model(f"models:/{model.model_id}")


def chained_report(judged: dict[str, float], count: int, days: int) -> str:
    """Return the description of a walk-forward: its agents one after the other, next to buying and holding."""
    rows = [
        f"| {title} | {judged[f'{prefix}total_return']:+.1%} | {judged.get(f'{prefix}sharpe_ratio', 0.0):.2f} "
        f"± {judged.get(f'{prefix}sharpe_standard_error', 0.0):.2f} |"
        for title, prefix in (
            (f"{count} agents, each on days it has never seen", ""),
            ("buying and holding", "benchmark_"),
        )
    ]
    head = f"| {days} days | return after fees | Sharpe ratio ± standard error |"
    return "\n".join([head, "| --- | ---: | ---: |", *rows])


def promote(client: MlflowClient, score: float) -> bool:
    """Make the challenger the champion if its score is higher, and return whether it is now."""
    version = client.get_model_version_by_alias(REGISTERED_MODEL, CHALLENGER).version
    client.set_model_version_tag(REGISTERED_MODEL, version, SCORE, str(score))
    try:
        champion = client.get_model_version_by_alias(REGISTERED_MODEL, CHAMPION)
    except MlflowException:  # there is none yet
        champion = None
    if champion is not None and float(champion.tags.get(SCORE, "-inf")) >= score:
        return False
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    return True


def main() -> None:
    """Train, judge the registered agent on days that it has never seen, and print where the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file with tracking_uri and other settings")
    parser.add_argument("--timesteps", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--walk-forward", type=int, default=0, metavar="N", help="train an agent for each of N windows")
    parser.add_argument(
        "--probe-file",
        type=Path,
        help="save the held-out days' observations and the agent's actions here (.npz)",
    )
    options = parser.parse_args()

    tracker = MLflowTracker(
        experiment_name=EXPERIMENT,
        config=options.config,
        record=Recording(sample_rows=True, system_metrics=True, importance=True),  # the prices are public
    )
    mlflow.set_tracking_uri(tracker.settings.tracking_uri)
    mlflow.set_registry_uri(tracker.settings.tracking_uri)
    if options.walk_forward:
        run = walk_forward(tracker, options.walk_forward, options.timesteps, options.seed)
        print(f"run {run.run_id}: {'complete' if run.flush().complete else 'not delivered yet'}")
        return
    run = train(tracker, options.timesteps, options.seed).run
    if run is None or not run.flush().complete:
        raise SystemExit("the agent is not registered yet; see tracking-callbacks status")
    agent = flavor.load_model(f"models:/{REGISTERED_MODEL}@{CHALLENGER}")
    judged = judge(run, agent)
    print(report(judged))
    run.set_tags({"mlflow.note.content": report(judged)})
    champion = promote(MlflowClient(), judged["validation"].get("sharpe_ratio", float("-inf")))
    print(f"{REGISTERED_MODEL}: {'the new version is the champion' if champion else 'the champion stays'}")
    if options.probe_file is not None:
        observations, actions, _ = play(agent, SINGLE.test)
        options.probe_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(options.probe_file, observations=observations, actions=actions)
    delivered = run.flush()
    print(f"run {run.run_id}: {delivered.delivered} records delivered, {delivered.pending} pending")


if __name__ == "__main__":
    main()
