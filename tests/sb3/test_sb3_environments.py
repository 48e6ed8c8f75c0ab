"""Environments and ways of training that lack something, or never end: each costs its own piece of the run alone."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch
from gymnasium import spaces
from markets import TINY, Market, Stop, Store, callback_for, market
from PIL import Image as Pictures
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Image, Video
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from processes import run_script
from tracking_callbacks import Recording
from tracking_callbacks.sb3 import MLflowSB3Callback

SMALL_SAC = {"learning_starts": 10, "batch_size": 8, "buffer_size": 1000, "policy_kwargs": {"net_arch": [4]}, "seed": 0}


class Endless(gym.Env):
    """An environment that never ends, with an account that grows a little in each step."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *, account: bool = False, length: int | None = None) -> None:
        self.account, self.length = account, length
        self.steps = 0

    def _info(self) -> dict[str, Any]:
        growth = np.cumprod(1.0 + np.random.default_rng(0).normal(0.001, 0.01, 5000))
        return {"portfolio_value": float(growth[self.steps])} if self.account else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), self._info()

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), float(self.steps % 5), False, self.steps == self.length, self._info()


class Batched(VecEnv):
    """A batched simulator: no single environments, no reset infos, and no way to ask for attributes."""

    def __init__(self, count: int = 4, length: int = 10) -> None:
        super().__init__(count, Endless.observation_space, spaces.Discrete(2))
        del self.reset_infos
        self.length = length
        self.steps = 0

    def reset(self) -> Any:
        self.steps = 0
        return np.zeros((self.num_envs, 2), np.float32)

    def step_async(self, actions: Any) -> None:
        pass

    def step_wait(self) -> Any:
        self.steps += 1
        done = self.steps % self.length == 0
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done:
            for info in infos:
                info["terminal_observation"] = np.zeros(2, np.float32)
        count = self.num_envs
        return np.zeros((count, 2), np.float32), np.ones(count, np.float32), np.full(count, done), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        if attr_name == "render_mode":  # the constructor of VecEnv asks for it
            return [None] * self.num_envs
        raise NotImplementedError

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        raise AttributeError("no single environments")


@pytest.mark.parametrize("monitored", [True, False], ids=["monitored", "bare"])
def test_a_batched_simulator_loses_only_what_it_does_not_say(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monitored: bool
) -> None:
    caplog.set_level(logging.INFO)
    env = VecMonitor(Batched()) if monitored else Batched()
    callback = callback_for(store)
    PPO("MlpPolicy", env, **TINY).learn(128, callback=callback)
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.0003"
    assert run.data.params["n_envs"] == "4"
    assert run.data.params["policy.parameters"].isdecimal()
    assert "env.id" not in run.data.params
    assert "train/loss" in run.data.metrics
    assert run.data.metrics["episode/reward"] == 10.0
    assert len(store.episodes(callback.run, tmp_path)) == 12
    assert "tracking failed" not in caplog.text
    lacks = [record.getMessage() for record in caplog.records if "the run goes on without" in record.getMessage()]
    assert len(lacks) == (1 if monitored else 2)


def test_a_run_without_an_end_of_an_episode_is_written_while_it_goes_on(store: Store) -> None:
    callback = callback_for(store)
    agent = SAC("MlpPolicy", DummyVecEnv([lambda: Endless(account=True)]), **SMALL_SAC)
    with pytest.raises(RuntimeError, match="burst"):
        agent.learn(2000, callback=[callback, Stop(450, RuntimeError("burst"))])
    run = store.delivered(callback.run)
    steps = [step for step, _ in store.points(callback.run, "rollout/reward_mean")]
    updates = [step for step, _ in store.points(callback.run, "train/actor_loss")]

    assert steps == [101, 201, 301, 401, 450]
    assert updates == steps
    assert run.data.metrics["rollout/reward_count"] == 49.0
    assert run.data.metrics["rollout/reward_mean"] == pytest.approx(2.0, abs=0.1)
    assert "rollout/sharpe_ratio" in run.data.metrics
    assert run.data.tags["episodes.under_way"] == "1, the longest for 450 steps"
    assert "equity_curves.csv" in {entry.path for entry in store.client.list_artifacts(run.info.run_id)}


def test_episodes_longer_than_a_window_are_still_counted_once(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    SAC("MlpPolicy", Monitor(Endless(length=150)), **SMALL_SAC).learn(400, callback=callback)
    run = store.delivered(callback.run)

    assert [row["length"] for row in store.episodes(callback.run, tmp_path)] == ["150", "150"]
    assert sum(value for _, value in store.points(callback.run, "rollout/episodes")) == 2.0
    assert run.data.tags["episodes.under_way"] == "1, the longest for 100 steps"


def test_the_curves_of_very_many_updates_are_bounded_and_keep_the_last_point(store: Store) -> None:
    callback = callback_for(store)
    agent = A2C("MlpPolicy", Monitor(Market()), policy_kwargs={"net_arch": [4]}, seed=0)
    agent.learn(10_000, callback=callback, log_interval=1000)
    run = store.delivered(callback.run)

    for name in ("train/policy_loss", "rollout/episode_reward_mean", "train/cumulative_reward"):
        points = store.points(callback.run, name)
        assert 300 < len(points) <= 501, name
        assert points[-1][0] == 10_000, name
        gaps = np.diff([step for step, _ in points])
        assert gaps.max() <= 2 * np.median(gaps), name
    assert run.data.metrics["train/n_updates"] == 2000
    assert "rollout/ep_rew_mean" not in run.data.metrics
    total = sum(len(store.points(callback.run, name)) for name in run.data.metrics if not name.startswith("episode/"))
    assert total < 12_000


def test_values_of_the_user_are_logged_at_every_dump(store: Store) -> None:
    class Records(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("custom/value", float(self.num_timesteps))
            return True

    callback = callback_for(store)
    agent = A2C("MlpPolicy", Monitor(Market()), policy_kwargs={"net_arch": [4]}, seed=0)
    agent.learn(4_000, callback=[callback, Records()], log_interval=1)
    store.delivered(callback.run)

    assert len(store.points(callback.run, "custom/value")) == 800


def test_a_loop_of_laps_refuses_nothing_and_registers_one_model(store: Store) -> None:
    name = "laps-of-one-loop"
    callback = callback_for(store, log_model=True, registered_model_name=name, aliases=["champion"])
    agent = PPO("MlpPolicy", market(), **TINY)
    for _ in range(4):
        agent.learn(32, callback=callback, reset_num_timesteps=False)
    run = store.delivered(callback.run)

    assert run.data.metrics["train/n_updates"] == 4
    assert "tracking_callbacks.rejected" not in run.data.tags
    assert callback.run.report().rejected == 0
    assert {tag for tag in run.data.tags if tag.startswith("param_drift")} == {"param_drift.total_timesteps"}
    (version,) = store.client.search_model_versions(f"name='{name}'")
    (output,) = run.outputs.model_outputs
    assert output.step == 128
    assert store.client.get_model_version_by_alias(name, "champion").version == version.version


LOOP = """
    from markets import TINY, Market
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.monitor import Monitor
    from tracking_callbacks import MLflowTracker
    from tracking_callbacks.sb3 import MLflowSB3Callback

    callback = MLflowSB3Callback(
        MLflowTracker({uri!r}, "loops", record=False), log_model="best", registered_model_name={name!r}
    )
    agent = PPO("MlpPolicy", Monitor(Market()), **TINY)
    for _ in range(3):
        evaluation = EvalCallback(Monitor(Market()), eval_freq=32, n_eval_episodes=1, verbose=0)
        agent.learn(32, callback=[callback, evaluation], reset_num_timesteps=False)
"""


def test_the_best_agent_of_a_loop_is_registered_when_the_program_ends(store: Store, tmp_path: Path) -> None:
    uri, name = store.tracker.settings.tracking_uri, f"loop-{tmp_path.parent.name}"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = run_script(LOOP.format(uri=uri, name=name), cwd=tmp_path, env={"PYTHONPATH": paths})
    (version,) = store.client.search_model_versions(f"name='{name}'")

    assert done.returncode == 0, done.stderr
    assert store.client.get_run(version.run_id).data.tags["tracking_callbacks.model_choice"].startswith("best: ")


def test_a_loop_that_another_run_follows_logs_its_agent_to_its_own_run(store: Store) -> None:
    callback = callback_for(store, log_model=True)
    written = []
    for _ in range(2):
        agent = PPO("MlpPolicy", market(), **TINY)
        for _ in range(2):
            agent.learn(32, callback=callback, reset_num_timesteps=False)
        written.append(callback.run)
    runs = [store.delivered(run) for run in written]

    assert written[0] is not written[1]
    assert [[output.step for output in run.outputs.model_outputs] for run in runs] == [[64], [64]]


def test_a_model_is_logged_as_often_as_it_was_asked_for(store: Store) -> None:
    callback = callback_for(store, log_model=True, log_model_every=64)
    agent = PPO("MlpPolicy", market(), **TINY)
    for _ in range(5):
        agent.learn(32, callback=callback, reset_num_timesteps=False)
    run = store.delivered(callback.run)

    assert sorted(output.step for output in run.outputs.model_outputs) == [64, 128, 160]


def test_the_keywords_of_a_monitor_and_success_are_metrics_and_columns(store: Store, tmp_path: Path) -> None:
    class Reaching(Market):
        def _info(self) -> dict[str, Any]:
            return super()._info() | {"distance": 5.0 - self.episode, "is_success": self.episode % 2 == 0, "kind": "a"}

    callback = callback_for(store)
    env = Monitor(Reaching(), info_keywords=("distance", "kind"))
    PPO("MlpPolicy", env, **TINY).learn(64, callback=callback)
    store.delivered(callback.run)
    rows = store.episodes(callback.run, tmp_path)

    assert [value for _, value in store.points(callback.run, "episode/distance")] == [4.0, 3.0, 2.0, 1.0, 0.0, -1.0]
    assert [value for _, value in store.points(callback.run, "episode/is_success")] == [0.0, 1.0] * 3
    assert [row["distance"] for row in rows] == ["4.0", "3.0", "2.0", "1.0", "0.0", "-1.0"]
    assert "kind" not in rows[0]


def test_images_videos_and_hyperparameters_of_the_logger_become_artifacts(store: Store, tmp_path: Path) -> None:
    class Records(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 20:
                pixels = np.zeros((6, 8, 3), np.uint8)
                pixels[:, :4] = 255
                self.logger.record("view", Image(pixels, "HWC"), exclude=("stdout", "log", "json", "csv"))
                batch = torch.rand(2, 1, 6, 8)
                self.logger.record("batch", Image(batch, "NCHW"), exclude=("stdout", "log", "json", "csv"))
                frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 5, 3, 6, 8), dtype=np.uint8))
                self.logger.record("film", Video(frames, fps=10), exclude=("stdout", "log", "json", "csv"))
                self.logger.record("hparams", HParam({"lr": 0.1}, {"train/loss": 0.0}))
                self.logger.record("bad", Image(pixels, "CHW1"), exclude=("stdout", "log", "json", "csv"))
            return True

    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=[callback, Records()])
    run = store.delivered(callback.run)

    def artifact(place: str) -> Path:
        return Path(store.client.download_artifacts(run.info.run_id, place, str(tmp_path)))

    with Pictures.open(artifact("images/view/000000032.png")) as picture:
        assert picture.size == (8, 6)
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert picture.getpixel((7, 0)) == (0, 0, 0)
    with Pictures.open(artifact("images/batch/000000032.png")) as picture:
        assert picture.size == (16, 6)
    with Pictures.open(artifact("videos/film/000000032.gif")) as film:
        assert film.n_frames == 5
        assert film.info["duration"] == 100
    assert json.loads(artifact("hparams/hparams/000000032.json").read_text())["hyperparameters"] == {"lr": 0.1}


def test_the_name_for_tensorboard_names_the_run(store: Store) -> None:
    callback, default = callback_for(store), callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=callback, tb_log_name="wide network")
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=default)

    assert store.delivered(callback.run).info.run_name == "wide network"
    assert store.delivered(default.run).info.run_name != "PPO"


def test_trials_of_a_study_are_nested_and_register_nothing(store: Store) -> None:
    name = "only-winners"
    store.client.create_registered_model(name)
    callbacks: list[MLflowSB3Callback] = []

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        callback = callback_for(store, log_model=True, registered_model_name=name, aliases=["champion"])
        callbacks.append(callback)
        PPO("MlpPolicy", market(), learning_rate=rate, **TINY).learn(32, callback=callback)
        if trial.number == 1:
            raise optuna.TrialPruned
        return rate

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name="rates").optimize(objective, n_trials=3)
    after = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=after)
    runs = [store.delivered(callback.run) for callback in callbacks]
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in runs}

    assert store.client.search_model_versions(f"name='{name}'") == []
    assert [run.info.run_name for run in runs] == ["trial 0", "trial 1", "trial 2"]
    assert all("trial.rate" in run.data.params for run in runs)
    assert len(runs[0].outputs.model_outputs) == 1
    assert store.client.get_run(parent).info.run_name == "study rates"
    assert store.client.get_run(parent).info.status == "FINISHED"
    assert "mlflow.parentRunId" not in store.delivered(after.run).data.tags


def test_a_run_that_a_trial_opens_by_itself_is_joined(store: Store) -> None:
    joined = []

    def objective(trial: optuna.Trial) -> float:
        with store.tracker.start_run(f"mine {trial.number}") as run:
            callback = callback_for(store)
            PPO("MlpPolicy", market(), **TINY).learn(32, callback=callback)
            joined.append(callback.run is run)
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study().optimize(objective, n_trials=2)

    assert joined == [True, True]


def test_large_arrays_among_the_settings_cost_a_line(store: Store, tmp_path: Path) -> None:
    table = np.arange(1_500_000, dtype=np.float64).reshape(-1, 3)

    class Extractor(torch.nn.Module):
        def __init__(self, space: Any, table: Any) -> None:
            super().__init__()
            self.features_dim = int(space.shape[0])

        def forward(self, seen: Any) -> Any:
            return seen

    policy = {"net_arch": [4], "features_extractor_class": Extractor, "features_extractor_kwargs": {"table": table}}
    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY | {"policy_kwargs": policy}).learn(32, callback=callback)
    run = store.delivered(callback.run)
    config = Path(store.client.download_artifacts(run.info.run_id, "config/sb3.json", str(tmp_path)))

    known = json.loads(config.read_text())
    (shape,) = [value for name, value in known.items() if name.endswith("table.shape")]
    assert shape == [500_000, 3]
    assert config.stat().st_size < 20_000


def test_importance_finds_the_feature_that_decides(store: Store, tmp_path: Path) -> None:
    from stable_baselines3.common.callbacks import EvalCallback

    class Signal(gym.Env):
        """Pays for choosing the side that the second of four features shows."""

        observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        action_space = spaces.Discrete(2)
        feature_names = ("noise a", "signal", "noise b", "noise c")

        def __init__(self) -> None:
            self.random = np.random.default_rng(0)
            self.steps = 0

        def _draw(self) -> Any:
            self.seen = self.random.uniform(-1.0, 1.0, 4).astype(np.float32)
            return self.seen

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.steps = 0
            return self._draw(), {}

        def step(self, action: Any) -> Any:
            reward = 1.0 if (self.seen[1] > 0) == bool(action) else -1.0
            self.steps += 1
            return self._draw(), reward, False, self.steps == 50, {}

    tracker = type(store.tracker)(
        store.tracker.settings.tracking_uri,
        store.tracker.settings.experiment_name,
        record=Recording(importance=True),
        delivery=store.tracker.settings.delivery,
    )
    callback = callback_for(Store(tracker, store.client))
    agent = PPO("MlpPolicy", Monitor(Signal()), n_steps=256, batch_size=64, learning_rate=3e-3, seed=0)
    agent.learn(4096, callback=[callback, EvalCallback(Monitor(Signal()), eval_freq=2048, verbose=0)])
    run = store.delivered(callback.run)
    place = "evaluation/eval/step-4096"
    path = Path(store.client.download_artifacts(run.info.run_id, f"{place}/feature_importance.csv", str(tmp_path)))
    rows = list(csv.DictReader(path.read_text().splitlines()))

    assert rows[0]["feature"] == "signal"
    assert float(rows[0]["importance"]) > 3 * float(rows[1]["importance"])
    assert f"{place}/feature_importance.png" in {e.path for e in store.client.list_artifacts(run.info.run_id, place)}


def test_dqn_agents_are_described_and_judged_too(store: Store) -> None:
    callback = callback_for(store)
    arguments = {"learning_starts": 10, "buffer_size": 500, "policy_kwargs": {"net_arch": [4]}}
    DQN("MlpPolicy", Monitor(Market()), **arguments).learn(300, callback=callback)
    run = store.delivered(callback.run)

    assert run.data.params["optimizer"] == "Adam"
    assert run.data.metrics["rollout/exploration_rate"] <= 1.0
