"""The MLflow flavor of SB3 agents: a saved agent loads anywhere and acts the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mlflow
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from mlflow.exceptions import MlflowException
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from tracking_callbacks.flavors import sb3 as flavor

PIXELS = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OFF_POLICY = {"learning_starts": 20, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}}
TINY = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}


class Sampled(gym.Env[Any, Any]):
    """An environment that shows samples of its observation space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, self.np_random.random() < 0.1, {}

    def action_masks(self) -> list[bool]:
        return [True] * 3


def raw_observations(env: VecEnv, count: int = 200) -> Any:
    """Return raw observations of `env`, far enough from the mean that missing statistics would show."""
    space = env.unwrapped.observation_space
    space.seed(3)
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.clip(np.stack(samples), -5.0, 5.0) if space.dtype == np.float32 else np.stack(samples)


def expected_actions(model: BaseAlgorithm, observations: Any) -> Any:
    normalizer = model.get_vec_normalize_env()
    seen = observations if normalizer is None else normalizer.normalize_obs(observations)
    return model.predict(seen, deterministic=True)[0]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (3, 2), np.float32),
        spaces.Box(-1.0, 1.0, (2,), np.float64),
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(4),
        PIXELS,
        spaces.Dict({"price": spaces.Box(-1.0, 1.0, (2,), np.float32), "chart": PIXELS, "day": spaces.Discrete(5)}),
    ],
    ids=["box", "float64", "discrete", "multi-discrete", "multi-binary", "image", "dict"],
)
def test_every_observation_space_has_a_signature_and_an_example(tmp_path: Path, space: spaces.Space[Any]) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy" if space is PIXELS else "MlpPolicy"
    model = PPO(policy, Sampled(space), seed=1, **TINY)
    flavor.save_model(model, tmp_path / "agent")
    function = mlflow.pyfunc.load_model(str(tmp_path / "agent"))
    observations = raw_observations(model.get_env(), 20)

    np.testing.assert_array_equal(function.predict(observations), expected_actions(model, observations))
    assert function.predict(function.input_example).shape == (1,)
    assert set(function.predict(observations, params={"deterministic": False})) <= {0, 1, 2}


@pytest.mark.parametrize(
    "space",
    [spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(4), spaces.Box(-2.0, 2.0, (2,), np.float32)],
    ids=["multi-discrete", "multi-binary", "box"],
)
def test_every_action_space_is_in_the_signature(tmp_path: Path, space: spaces.Space[Any]) -> None:
    model = PPO("MlpPolicy", Sampled(spaces.Box(-1.0, 1.0, (2,), np.float32), space), seed=1, **TINY)
    flavor.save_model(model, tmp_path / "agent")
    function = mlflow.pyfunc.load_model(str(tmp_path / "agent"))
    actions = function.predict(np.zeros((7, 2), np.float32))
    output = function.metadata.signature.outputs.inputs[0]

    assert actions.shape == (7, *output.shape[1:])
    assert actions.dtype == output.type


def test_maskable_agents_load(tmp_path: Path) -> None:
    model = MaskablePPO("MlpPolicy", Sampled(spaces.Box(-1.0, 1.0, (2,), np.float32)), seed=1, **TINY)
    flavor.save_model(model, tmp_path / "agent")
    requirements = (tmp_path / "agent" / "requirements.txt").read_text(encoding="utf-8").split()

    assert isinstance(flavor.load_model(str(tmp_path / "agent")), MaskablePPO)
    assert [line for line in requirements if line.startswith("sb3")] == [f"sb3-contrib=={version('sb3-contrib')}"]


def version(distribution: str) -> str:
    return flavor.distributions.version(distribution)


def test_requirements_are_pinned_as_installed_without_local_labels(tmp_path: Path) -> None:
    flavor.save_model(PPO("MlpPolicy", "CartPole-v1", **TINY), tmp_path / "agent")
    requirements = (tmp_path / "agent" / "requirements.txt").read_text(encoding="utf-8").split()

    assert f"stable-baselines3=={version('stable-baselines3')}" in requirements
    assert f"torch=={version('torch').partition('+')[0]}" in requirements
    assert all("==" in line and "+" not in line for line in requirements)


def test_a_recurrent_agent_keeps_its_memory_until_an_episode_starts(tmp_path: Path) -> None:
    model = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", seed=1, **TINY, policy_kwargs={"lstm_hidden_size": 8}).learn(
        64
    )
    flavor.save_model(model, tmp_path / "agent")
    function = mlflow.pyfunc.load_model(str(tmp_path / "agent"))
    steps = np.random.default_rng(0).normal(size=(5, 1, 3)).astype(np.float32)
    memory, expected = None, []
    for step in steps:
        action, memory = model.predict(step, state=memory, deterministic=True)
        expected.append(action)
    acted = [function.predict(step) for step in steps]
    again = [function.predict(step, params={"episode_start": not index}) for index, step in enumerate(steps)]

    np.testing.assert_array_equal(acted, expected)
    np.testing.assert_array_equal(again, expected)
    assert len(np.unique(expected)) == 5


def test_an_agent_loaded_with_an_environment_keeps_training_with_its_statistics(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", seed=1))
    model = PPO("MlpPolicy", env, seed=1, **TINY).learn(64)
    flavor.save_model(model, tmp_path / "agent")
    loaded = flavor.load_model(str(tmp_path / "agent"), env=gym.make("CartPole-v1"))
    observations = raw_observations(env)
    normalizer = loaded.get_vec_normalize_env()

    assert normalizer is not None
    np.testing.assert_array_equal(normalizer.obs_rms.mean, env.obs_rms.mean)
    np.testing.assert_array_equal(expected_actions(loaded, observations), expected_actions(model, observations))
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 96


def test_a_loaded_agent_can_be_saved_again(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", seed=1))
    model = PPO("MlpPolicy", env, seed=1, **TINY).learn(64)
    flavor.save_model(model, tmp_path / "first")
    flavor.save_model(flavor.load_model(str(tmp_path / "first")), tmp_path / "second")
    observations = raw_observations(env)
    loaded = flavor.load_model(str(tmp_path / "second"))

    actions, _ = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, expected_actions(model, observations))


def test_statistics_inside_a_frame_stack_are_kept_but_not_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", seed=1)), 2)
    model = PPO("MlpPolicy", env, seed=1, **TINY)
    flavor.save_model(model, tmp_path / "agent")
    stacked = np.ones((3, 8), np.float32)

    assert "VecFrameStack stands between" in caplog.text
    np.testing.assert_array_equal(
        flavor.load_model(str(tmp_path / "agent")).predict(stacked, deterministic=True)[0],
        model.predict(stacked, deterministic=True)[0],
    )
    assert (tmp_path / "agent" / "vecnormalize.pkl").is_file()


def test_an_agent_loads_where_the_package_is_not_installed(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")])), seed=1, **TINY).learn(64)
    flavor.save_model(model, tmp_path / "agent")
    observations = raw_observations(model.get_env())
    np.save(tmp_path / "observations.npy", observations)
    script = (
        "import sys; sys.modules['tracking_callbacks'] = None\n"
        "import mlflow, numpy as np\n"
        "function = mlflow.pyfunc.load_model('agent')\n"
        "np.save('actions.npy', function.predict(np.load('observations.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)

    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), expected_actions(model, observations))


def test_a_class_that_is_not_an_algorithm_is_refused(tmp_path: Path) -> None:
    flavor.save_model(PPO("MlpPolicy", "CartPole-v1", **TINY), tmp_path / "agent")
    file = tmp_path / "agent" / "MLmodel"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for path, reason in (("subprocess.Popen", "not a Stable-Baselines3"), ("absent.Agent", "cannot be imported")):
        content["flavors"][flavor.FLAVOR_NAME]["algorithm"] = path
        file.write_text(yaml.safe_dump(content), encoding="utf-8")

        with pytest.raises(MlflowException, match=reason):
            flavor.load_model(str(tmp_path / "agent"))


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(MlflowException, match="not empty"):
        flavor.save_model(PPO("MlpPolicy", "CartPole-v1", **TINY), tmp_path)


def test_log_model_follows_mlflows_own_conventions(tmp_path: Path) -> None:
    script = """if True:
        import mlflow, numpy as np
        from stable_baselines3 import PPO
        from tracking_callbacks.flavors import sb3 as flavor

        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        model = PPO("MlpPolicy", "CartPole-v1", seed=1, n_steps=32, batch_size=32)
        with mlflow.start_run():
            flavor.log_model(model, registered_model_name="cart-pole")
        observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
        loaded = flavor.load_model("models:/cart-pole/1")
        actions = [agent.predict(observations, deterministic=True)[0] for agent in (model, loaded)]
        np.testing.assert_array_equal(*actions)
    """
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_importing_the_flavor_does_not_import_mlflow() -> None:
    script = "import sys, tracking_callbacks.flavors.sb3, tracking_callbacks.sb3; assert 'mlflow' not in sys.modules"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
