"""Agents loaded from the registry in another process act as they did in training, for every algorithm."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mlflow
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from tracking_callbacks import MLflowTracker, Run
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.sb3 import MLflowSB3Callback

OFF_POLICY = {"learning_starts": 20, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}}
ON_POLICY = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}


class Masked(gym.Env[Any, Any]):
    """Three actions; the last one is never allowed."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.day = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.day += 1
        return self._seen(), 1.0, False, self.day == 10, {}

    def action_masks(self) -> list[bool]:
        return [True, True, False]

    def _seen(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 4).astype(np.float32)


ALGORITHMS: list[tuple[type[BaseAlgorithm], str, Any, dict[str, Any]]] = [
    (PPO, "MlpPolicy", "CartPole-v1", ON_POLICY),
    (A2C, "MlpPolicy", "CartPole-v1", {}),
    (DQN, "MlpPolicy", "CartPole-v1", OFF_POLICY),
    (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (TD3, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (DDPG, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (MaskablePPO, "MlpPolicy", Masked, ON_POLICY),
    (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", ON_POLICY | {"policy_kwargs": {"lstm_hidden_size": 8}}),
    (TRPO, "MlpPolicy", "CartPole-v1", {"n_steps": 32}),
    (QRDQN, "MlpPolicy", "CartPole-v1", OFF_POLICY),
    (TQC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (ARS, "LinearPolicy", "CartPole-v1", {"n_delta": 1}),
]

FRESH_PROCESS = """if True:
    import sys
    import mlflow
    import numpy as np
    from tracking_callbacks.flavors import sb3 as flavor

    mlflow.set_tracking_uri(sys.argv[1])
    for name in sys.argv[2:]:
        was = np.load(f"{name}.npz")
        masks = {"action_masks": was["masks"]} if "masks" in was else {}
        agent = flavor.load_model(f"models:/reload-{name}@champion")
        acts = {"load_model": agent.predict(was["observations"], deterministic=True, **masks)[0]}
        function = mlflow.pyfunc.load_model(f"models:/reload-{name}@champion")
        flat = {key: mask.ravel() for key, mask in masks.items()}
        acts["pyfunc"] = function.predict(was["observations"], params=flat)
        differ = {way: int((got != was["actions"]).reshape(1000, -1).any(axis=1).sum()) for way, got in acts.items()}
        print(f"{name}: of 1000 actions differ {differ}, {len(np.unique(was['actions'], axis=0))} distinct")
"""


def test_every_algorithm_loaded_by_its_alias_in_a_fresh_process_acts_the_same(
    tracker: MLflowTracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(3)
    runs: dict[str, Run] = {}
    for algorithm, policy, env_id, arguments in ALGORITHMS:
        name = algorithm.__name__
        env = VecNormalize(make_vec_env(env_id, seed=1))
        # SB3 writes into policy_kwargs.
        model = algorithm(policy, env, seed=3, device="cpu", **copy.deepcopy(arguments))
        callback = MLflowSB3Callback(tracker, registered_model_name=f"reload-{name}", aliases=["champion"])
        model.learn(64, callback=callback)
        observations = generator.uniform(-3.0, 3.0, (1000, *env.observation_space.shape)).astype(np.float32)
        masks = generator.random((1000, 3)) < 0.5
        masks[:, 0] |= ~masks.any(axis=1)
        masked = {"masks": masks} if algorithm is MaskablePPO else {}
        given = {"action_masks": masks} if masked else {}
        actions, _ = model.predict(env.normalize_obs(observations), deterministic=True, **given)
        np.savez(tmp_path / f"{name}.npz", observations=observations, actions=actions, **masked)
        assert callback.run is not None
        runs[name] = callback.run
    assert all(run.flush(120).complete for run in runs.values())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, tracker.settings.tracking_uri, *runs],
        cwd=tmp_path,
        check=True,
        timeout=150,
        capture_output=True,
        text=True,
    )
    with capsys.disabled():
        sys.stdout.write("\n" + done.stdout)
    lines = done.stdout.splitlines()

    assert [line.partition(",")[0] for line in lines] == [
        f"{name}: of 1000 actions differ {{'load_model': 0" for name in runs
    ]
    assert all("'pyfunc': 0}" in line for line in lines)
    assert not any(line.endswith(" 1 distinct") for line in lines if not line.startswith("ARS"))


def test_pyfunc_respects_action_masks(tmp_path: Path) -> None:
    model = MaskablePPO("MlpPolicy", VecNormalize(DummyVecEnv([Masked])), seed=1, device="cpu", **ON_POLICY)
    flavor.save_model(model, tmp_path / "agent")
    function = mlflow.pyfunc.load_model(str(tmp_path / "agent"))
    observations = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 4)).astype(np.float32)
    only_last = np.tile([False, False, True], (50, 1))

    assert set(function.predict(observations, params={"action_masks": only_last.ravel()})) == {2}
    assert set(function.predict(observations, params={"action_masks": only_last.ravel().tolist()})) == {2}
    assert set(function.predict(observations)) != {2}
    assert function.metadata.signature.params.to_dict()[1]["name"] == "action_masks"


def test_mlflow_models_predict_acts_like_the_agent(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", seed=1))
    model = PPO("MlpPolicy", env, seed=1, device="cpu", **ON_POLICY).learn(64)
    flavor.save_model(model, tmp_path / "agent")
    observations = np.random.default_rng(0).uniform(-3.0, 3.0, (20, 4)).astype(np.float32)
    question = {"inputs": observations.tolist(), "params": {"deterministic": True}}
    (tmp_path / "question.json").write_text(json.dumps(question), encoding="utf-8")
    subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "models", "predict", "--model-uri", "agent", "--env-manager", "local"),
            *("--input-path", "question.json", "--content-type", "json", "--output-path", "answer.json"),
        ],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        check=True,
        timeout=150,
    )
    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)

    assert answer["predictions"] == expected.tolist()
