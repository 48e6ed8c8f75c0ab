"""The params of a run are the settings of every algorithm, by name and as plain values."""

from __future__ import annotations

import inspect
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from tracking_callbacks.sb3.params import describe

ALGORITHMS: list[tuple[type[BaseAlgorithm], str, str, set[str]]] = [
    (PPO, "MlpPolicy", "CartPole-v1", {"n_steps", "gae_lambda", "clip_range", "ent_coef", "target_kl"}),
    (A2C, "MlpPolicy", "CartPole-v1", {"n_steps", "vf_coef", "max_grad_norm"}),
    (DQN, "MlpPolicy", "CartPole-v1", {"exploration_fraction", "target_update_interval", "train_freq"}),
    (SAC, "MlpPolicy", "Pendulum-v1", {"ent_coef", "target_entropy", "tau", "buffer_size"}),
    (TD3, "MlpPolicy", "Pendulum-v1", {"policy_delay", "target_policy_noise"}),
    (DDPG, "MlpPolicy", "Pendulum-v1", {"tau", "action_noise"}),
    (TRPO, "MlpPolicy", "CartPole-v1", {"cg_max_steps", "line_search_shrinking_factor", "target_kl"}),
    (QRDQN, "MlpPolicy", "CartPole-v1", {"exploration_final_eps"}),
    (TQC, "MlpPolicy", "Pendulum-v1", {"top_quantiles_to_drop_per_net"}),
    (ARS, "LinearPolicy", "CartPole-v1", {"n_delta", "delta_std", "alive_bonus_offset"}),
    (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {"n_epochs", "clip_range_vf"}),
    (MaskablePPO, "MlpPolicy", "CartPole-v1", {"n_epochs", "gae_lambda"}),
]
# Constructor arguments that are not settings, and settings that a run lists under other names.
NO_SETTINGS = {"self", "env", "_init_setup_model", "kwargs"}


@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "expected"), ALGORITHMS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_algorithm_is_described_by_name(
    algorithm: type[BaseAlgorithm], policy: str, env: str, expected: set[str]
) -> None:
    arguments: dict[str, Any] = {"buffer_size": 10} if "buffer_size" in expected else {}
    params = describe(algorithm(policy, env, seed=3, **arguments))

    known = {name.partition(".")[0] for name in params}

    assert set(inspect.signature(algorithm.__init__).parameters) - NO_SETTINGS <= known
    assert expected | {"learning_rate", "env.id", "policy.parameters", "n_envs"} <= set(params)
    assert params["algorithm"] == algorithm.__name__
    assert params["policy"] == policy
    assert params["seed"] == 3
    assert params["env.id"] == env
    assert "0x" not in json.dumps(params)


def test_the_optimizers_settings_are_those_in_effect() -> None:
    params = describe(A2C("MlpPolicy", "CartPole-v1", rms_prop_eps=1e-4))

    assert (params["use_rms_prop"], params["rms_prop_eps"]) == (True, 1e-4)
    assert (params["optimizer"], params["optimizer.alpha"]) == ("RMSprop", 0.99)
    assert describe(A2C("MlpPolicy", "CartPole-v1", use_rms_prop=False))["use_rms_prop"] is False


def test_schedules_are_described_by_their_values_at_the_start_and_the_end() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", learning_rate=lambda progress: 2e-3 * progress, clip_range=lambda _: 0.3)
    params = describe(model)

    assert (params["learning_rate.start"], params["learning_rate.end"]) == (2e-3, 0.0)
    assert params["clip_range"] == 0.3


def test_a_schedule_that_raises_loses_only_its_own_value() -> None:
    params = describe(PPO("MlpPolicy", "CartPole-v1", clip_range=lambda progress: 0.1 / progress))

    assert (params["clip_range.start"], params["clip_range.end"]) == (0.1, None)
    assert params["n_steps"] == 2048


def test_objects_are_described_by_what_they_do() -> None:
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    kwargs = {"net_arch": {"pi": [8], "qf": [16]}, "activation_fn": torch.nn.ELU}
    params = describe(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, action_noise=noise, policy_kwargs=kwargs))

    assert params["action_noise"] == "NormalActionNoise(mu=[0.], sigma=[0.1])"
    assert params["policy_kwargs.net_arch.pi"] == [8]
    assert params["policy_kwargs.activation_fn"] == "torch.nn.modules.activation.ELU"
    assert params["train_freq"] == "1 step"


class Nameless(gym.Env[Any, Any]):
    """Has the default text of an object, which contains its address."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __str__(self) -> str:
        return object.__repr__(self)


def test_an_environment_without_its_own_text_is_identified_by_its_class() -> None:
    params = describe(PPO("MlpPolicy", gym.wrappers.TimeLimit(Nameless(), 9)))

    assert (params["env.id"], params["env.class"]) == ("Nameless", "Nameless")
    assert params["env.wrappers"] == ["Monitor", "TimeLimit"]
    assert "0x" not in json.dumps(params)


def test_the_wrappers_of_an_environment_are_named() -> None:
    env = VecNormalize(VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)), gamma=0.9)
    params = describe(PPO("MlpPolicy", env))

    assert params["n_envs"] == 3
    assert params["env.class"] == "CartPoleEnv"
    assert params["env.wrappers"] == ["TimeLimit", "OrderEnforcing", "PassiveEnvChecker"]
    assert params["env.vec_wrappers"] == ["VecNormalize", "VecMonitor"]
    assert params["vec_normalize.gamma"] == 0.9
