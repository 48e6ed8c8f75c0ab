"""Evaluations by an ``EvalCallback``: their trading statistics, and the best agent, which is registered."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from markets import TINY, Market, Store, callback_for, market
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from tracking_callbacks import finance
from tracking_callbacks.flavors import sb3 as flavor


class Pays(Market):
    """Rewards that alternate between `reward` and twice as much."""

    def __init__(self, reward: float) -> None:
        super().__init__(reward=reward)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.reward * (2 - self.day % 2), terminated, truncated, info


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("monitored", [True, False], ids=["monitor", "no-monitor"])
def test_the_statistics_of_each_evaluation_are_those_of_its_own_episodes(
    store: Store, order: str, monitored: bool
) -> None:
    make = (lambda: Monitor(Market())) if monitored else Market
    evaluation = EvalCallback(DummyVecEnv([make]), eval_freq=16, n_eval_episodes=2, verbose=0, warn=False)
    callback = callback_for(store, periods_per_year=365)
    both: list[BaseCallback] = [evaluation, callback] if order == "before" else [callback, evaluation]
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=both)
    store.delivered(callback.run)
    run = callback.run
    # An evaluation resets at the start and after each episode, so it plays 1 and 2, then 4 and 5, then 7 and 8.
    apart = [finance.returns_from_equity(Market().equities(episode)) for episode in (7, 8)]
    together = np.concatenate(apart)

    assert [step for step, _ in store.points(run, "eval/mean_reward")] == [16, 32, 48, 64]
    assert [step for step, _ in store.points(run, "eval/sharpe_ratio")] == [16, 32, 48, 64]
    assert store.points(run, "eval/sharpe_ratio")[2][1] == pytest.approx(
        finance.sharpe_ratio(together, periods_per_year=365), rel=1e-9
    )
    assert store.points(run, "eval/volatility")[2][1] == pytest.approx(
        finance.volatility(together, periods_per_year=365), rel=1e-9
    )
    assert store.points(run, "eval/sortino_ratio")[2][1] == pytest.approx(
        finance.sortino_ratio(together, periods_per_year=365), rel=1e-9
    )
    assert store.points(run, "eval/max_drawdown")[2][1] == pytest.approx(
        min(finance.max_drawdown(series) for series in apart), rel=1e-9
    )
    assert store.points(run, "eval/total_return")[2][1] == pytest.approx(
        np.mean([finance.total_return(series) for series in apart]), rel=1e-9
    )
    assert "_on_step" not in vars(evaluation)
    assert "_log_success_callback" not in vars(evaluation)


def test_parallel_evaluations_behind_vec_normalize_use_raw_rewards(store: Store) -> None:
    def env(reward: float) -> VecNormalize:
        return VecNormalize(SubprocVecEnv([lambda: Pays(reward)] * 3, start_method="fork"))

    evaluated = env(0.01)
    evaluation = EvalCallback(evaluated, eval_freq=16, n_eval_episodes=3, verbose=0, warn=False)
    callback = callback_for(store, returns="reward")
    PPO("MlpPolicy", VecNormalize(market()), **TINY).learn(32, callback=[callback, evaluation])
    evaluated.close()
    store.delivered(callback.run)

    # Ten days of alternating returns of 1 % and 2 %.
    assert store.points(callback.run, "eval/total_return")[-1][1] == pytest.approx((1.01 * 1.02) ** 5 - 1)


class Scripted(EvalCallback):
    """Evaluates for real, but finds the mean rewards that a test needs."""

    def __init__(self, rewards: list[float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rewards, self.weights = rewards, []

    def _on_step(self) -> bool:
        go_on = super()._on_step()
        if self.n_calls % self.eval_freq == 0:
            self.weights.append(self.model.policy.action_net.bias.detach().clone().numpy())
            self.last_mean_reward = self.rewards[len(self.weights) - 1]
        return go_on


def test_the_agent_with_the_best_evaluation_is_registered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", seed=0))
    evaluation = Scripted(
        [10.0, float("nan"), 30.0, 20.0],
        eval_env=VecNormalize(make_vec_env("CartPole-v1")),
        eval_freq=32,
        n_eval_episodes=1,
        verbose=0,
    )
    callback = callback_for(store, log_model="best", registered_model_name="best", aliases=["champion"])
    agent = PPO("MlpPolicy", env, **TINY)
    agent.learn(128, callback=[callback, evaluation])
    run = store.delivered(callback.run)
    version = store.client.get_model_version_by_alias("best", "champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracker.settings.tracking_uri)
    loaded = flavor.load_model("models:/best@champion")

    assert version.run_id == run.info.run_id
    assert version.tags["tracking_callbacks.model_choice"].startswith("best: mean reward 30.0")
    assert run.data.tags["tracking_callbacks.model_choice"].endswith("at step 96")
    np.testing.assert_array_equal(loaded.policy.action_net.bias.detach().numpy(), evaluation.weights[2])
    assert loaded.num_timesteps == 96
    assert loaded.get_vec_normalize_env().obs_rms.count < env.obs_rms.count
    assert agent.num_timesteps == 128


def test_without_an_evaluation_the_last_agent_is_registered_and_the_run_says_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    callback = callback_for(store, log_model="best", registered_model_name="never-evaluated")
    with caplog.at_level(logging.WARNING, "tracking_callbacks"):
        PPO("MlpPolicy", market(), **TINY).learn(32, callback=callback)
    store.delivered(callback.run)
    (version,) = store.client.search_model_versions("name='never-evaluated'")

    assert "no EvalCallback has evaluated" in caplog.text
    assert version.tags["tracking_callbacks.model_choice"] == "last, for want of an evaluation"


class Masked(Market):
    def action_masks(self) -> list[bool]:
        return [True, False]


@pytest.mark.parametrize("kind", ["masked", "nested"])
def test_derived_and_nested_evaluations_are_followed_too(store: Store, kind: str) -> None:
    callback = callback_for(store)
    if kind == "masked":
        evaluation: BaseCallback = MaskableEvalCallback(
            Masked(), eval_freq=32, n_eval_episodes=1, verbose=0, warn=False
        )
        MaskablePPO("MlpPolicy", Masked(), **TINY).learn(32, callback=[callback, evaluation])
    else:
        inner = EvalCallback(Market(), eval_freq=1, n_eval_episodes=1, verbose=0, warn=False)
        PPO("MlpPolicy", market(), **TINY).learn(32, callback=[EveryNTimesteps(32, inner), callback])
    run = store.delivered(callback.run)

    assert run.data.metrics["eval/sharpe_ratio"] == pytest.approx(
        finance.sharpe_ratio(finance.returns_from_equity(Market().equities(1))), rel=1e-9
    )


def test_two_callbacks_next_to_one_evaluation_both_log_all_of_it(store: Store) -> None:
    evaluation = EvalCallback(Monitor(Market()), eval_freq=16, n_eval_episodes=1, verbose=0, warn=False)
    first, second = callback_for(store), callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=[first, evaluation, second])
    points = {
        (name, key): store.points(callback.run, key)
        for name, callback in (("first", first), ("second", second))
        if store.delivered(callback.run)
        for key in ("eval/mean_reward", "eval/sharpe_ratio")
    }

    assert {tuple(step for step, _ in found) for found in points.values()} == {(16, 32, 48, 64)}
    assert points["first", "eval/sharpe_ratio"] == points["second", "eval/sharpe_ratio"]
    assert "_on_step" not in vars(evaluation)
    assert "_log_success_callback" not in vars(evaluation)


def test_two_callbacks_inside_one_evaluation_both_see_every_step(store: Store) -> None:
    first, second = callback_for(store), callback_for(store)
    evaluation = EvalCallback(
        Monitor(Market()),
        callback_on_new_best=first,
        callback_after_eval=second,
        eval_freq=16,
        n_eval_episodes=1,
        verbose=0,
        warn=False,
    )
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=evaluation)
    runs = [store.delivered(callback.run) for callback in (first, second)]

    for callback, run in zip((first, second), runs, strict=True):
        assert run.info.status == "FINISHED"
        assert len(store.points(callback.run, "episode/reward")) == 6
        assert [step for step, _ in store.points(callback.run, "eval/sharpe_ratio")] == [16, 32, 48, 64]
    assert not {"on_step", "on_training_end", "_on_step"} & set(vars(evaluation))


class SetsAHook(BaseCallback):
    """Wraps the evaluation's own hook in the middle of a training run, as a user's script may do."""

    def __init__(self, evaluation: EvalCallback, heard: list[int]) -> None:
        super().__init__()
        self.evaluation, self.heard = evaluation, heard
        self.hook: Any = None

    def _on_step(self) -> bool:
        if self.hook is None:
            before = self.evaluation._on_step

            def hook() -> bool:
                self.heard.append(self.evaluation.num_timesteps)
                return before()

            self.evaluation._on_step = self.hook = hook  # type: ignore[method-assign]
        return True


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_hook_of_the_users_on_the_evaluation_is_called_and_still_there_afterwards(store: Store, when: str) -> None:
    evaluation = EvalCallback(Market(), eval_freq=16, n_eval_episodes=1, verbose=0, warn=False)
    heard: list[int] = []
    setter = SetsAHook(evaluation, heard)
    if when == "before":
        setter._on_step()
    callback = callback_for(store)
    agent = PPO("MlpPolicy", market(), **TINY)
    agent.learn(32, callback=[callback, setter, evaluation])
    agent.learn(32, callback=[callback, evaluation], reset_num_timesteps=False)
    store.delivered(callback.run)

    assert heard == list(range(1, 65))
    assert vars(evaluation)["_on_step"] is setter.hook
    assert "_log_success_callback" not in vars(evaluation)
    assert [step for step, _ in store.points(callback.run, "eval/sharpe_ratio")] == [16, 32, 48, 64]
