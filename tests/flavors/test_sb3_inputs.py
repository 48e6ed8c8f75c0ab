"""What a served agent takes: everything that environments give, and what several clients need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import mlflow
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from processes import run_script
from tracking_callbacks.flavors import sb3 as flavor

TINY = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}


class Seen(gym.Env):
    """An environment that shows samples of its space."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def served(model: Any, folder: Path) -> Any:
    flavor.save_model(model, folder / "agent")
    return mlflow.pyfunc.load_model(str(folder / "agent"))


@pytest.fixture(scope="module")
def trained() -> PPO:
    return PPO("MlpPolicy", Seen(spaces.Box(-1.0, 1.0, (4,), np.float32)), seed=1, **TINY)


@pytest.mark.parametrize(
    "given",
    [
        lambda batch: batch.astype(np.float64),
        lambda batch: batch.tolist(),
        lambda batch: [tuple(row) for row in batch],
        lambda batch: list(batch),
        lambda batch: pd.DataFrame(batch),
        lambda batch: pd.DataFrame({"observation": list(batch)}),
    ],
    ids=["float64", "lists", "tuples", "arrays", "columns", "one column"],
)
def test_a_batch_in_any_form_gives_the_same_actions(trained: PPO, tmp_path: Path, given: Any) -> None:
    batch = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 4)).astype(np.float32)

    actions = served(trained, tmp_path).predict(given(batch))
    np.testing.assert_array_equal(actions, trained.predict(batch, deterministic=True)[0])


def test_one_observation_gives_one_action(trained: PPO, tmp_path: Path) -> None:
    function = served(trained, tmp_path)
    observation = np.full(4, 0.3)

    assert function.predict(observation) == trained.predict(observation.astype(np.float32), deterministic=True)[0]
    assert function.predict(observation.tolist()).shape == ()
    assert function.predict(observation[np.newaxis]).shape == (1,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros(3), r"expected shape \(n, 4\), or \(4\) for one, got \(3,\)"),
        (np.zeros((2, 5)), r"got \(2, 5\)"),
        ([[1.0, 2.0], [3.0]], r"expected numbers of shape \(n, 4\)"),
        ([["a", "b", "c", "d"]], r"expected numbers of shape \(n, 4\)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(trained: PPO, tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        served(trained, tmp_path).predict(given)


@pytest.mark.parametrize("normalized", [False, True], ids=["raw", "normalized"])
def test_images_may_have_their_channels_first_or_last(tmp_path: Path, normalized: bool) -> None:
    space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    env: Any = DummyVecEnv([lambda: Seen(space)])
    if normalized:
        env = VecNormalize(env, norm_obs=False)
    model = PPO("CnnPolicy", env, seed=1, **TINY)
    function = served(model, tmp_path)
    images = np.stack([space.sample() for _ in range(5)])
    first = np.moveaxis(images, -1, 1)

    expected = model.predict(first, deterministic=True)[0]
    np.testing.assert_array_equal(function.predict(images), expected)
    np.testing.assert_array_equal(function.predict(first), expected)
    assert function.predict(images[0]) == function.predict(first[0]) == expected[0]


def test_dict_observations_may_be_one_many_or_a_list(tmp_path: Path) -> None:
    space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,), np.float32), "b": spaces.Discrete(3)})
    model = PPO("MultiInputPolicy", Seen(space), seed=1, **TINY)
    function = served(model, tmp_path)
    single = [{"a": np.array([0.1 * n, -0.5]), "b": n % 3} for n in range(6)]
    batch = {"a": np.stack([one["a"] for one in single]), "b": np.array([one["b"] for one in single])}

    actions = function.predict(batch)
    assert actions.shape == (6,)
    np.testing.assert_array_equal(function.predict(single), actions)
    assert [int(function.predict(one)) for one in single] == actions.tolist()
    with pytest.raises(ValueError, match=r"expected a dict with \['a', 'b'\], without \['b'\] in this one"):
        function.predict({"a": batch["a"]})


def test_clients_that_share_a_recurrent_agent_keep_their_own_state(tmp_path: Path) -> None:
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    model = RecurrentPPO("MlpLstmPolicy", Seen(space), seed=1, **TINY, policy_kwargs={"lstm_hidden_size": 8})
    function = served(model, tmp_path)
    random = np.random.default_rng(0)
    clients = {name: random.uniform(-1.0, 1.0, (6, 1, 3)).astype(np.float32) for name in ("first", "second")}
    expected = {}
    for name, steps in clients.items():
        memory, states = None, []
        for step in steps:
            _, memory = model.predict(step, state=memory, deterministic=True)
            states.append(np.concatenate([part.ravel() for part in memory]))
        expected[name] = states
    states: dict[str, list[float]] = {name: [] for name in clients}
    for index in range(6):
        for name, steps in clients.items():
            answer = function.predict(steps[index], params={"state": states[name], "return_state": True})
            states[name] = answer["state"]
            np.testing.assert_allclose(states[name], expected[name][index], atol=1e-6)

    assert answer["actions"].shape == (1,)
    with pytest.raises(ValueError, match="state: expected the 16 numbers"):
        function.predict(clients["first"][0], params={"state": [0.0, 1.0]})


def test_an_agent_with_a_hindsight_buffer_loads_without_an_environment(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=4, continuous=False)
    model = DQN(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2},
        learning_starts=20,
        buffer_size=200,
        seed=1,
    ).learn(60)
    function = served(model, tmp_path)
    observation, _ = env.reset()

    expected = model.predict(observation, deterministic=True)[0]
    assert function.predict(observation) == expected
    assert flavor.load_model(str(tmp_path / "agent")).predict(observation, deterministic=True)[0] == expected
    again = flavor.load_model(str(tmp_path / "agent"), env=BitFlippingEnv(n_bits=4, continuous=False))
    assert again.replay_buffer_class is HerReplayBuffer
    again.learn(40)


def test_saved_attributes_can_be_replaced_on_loading(trained: PPO, tmp_path: Path) -> None:
    flavor.save_model(trained, tmp_path / "agent")

    assert flavor.load_model(str(tmp_path / "agent"), custom_objects={"learning_rate": 0.5}).learning_rate == 0.5


PROJECT = """
    import gymnasium, mlflow, sys
    from myproject.networks import Extractor
    from mypolicies import schedule
    from stable_baselines3 import PPO
    from tracking_callbacks import Delivery, MLflowTracker
    from tracking_callbacks.sb3 import MLflowSB3Callback
    policy = {"features_extractor_class": Extractor, "net_arch": [4]}
    sizes = {"n_steps": 32, "batch_size": 32}
    agent = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy, learning_rate=schedule, seed=0, **sizes)
    callback = MLflowSB3Callback(MLflowTracker(record=False), log_model=True, registered_model_name="own-code")
    agent.learn(32, callback=callback)
    assert callback.run.flush().complete
"""

ELSEWHERE = """
    import mlflow, numpy as np
    mlflow.set_tracking_uri({uri!r})
    agent = mlflow.pyfunc.load_model("models:/own-code/1")
    print(agent.predict(np.zeros((3, 4))).shape, type(agent.unwrap_python_model) is not None)
"""


def test_code_of_the_project_that_an_agent_names_travels_with_it(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "myproject" / "parts").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "pyproject.toml").touch()
    (project / "myproject" / "__init__.py").touch()
    (project / "myproject" / "parts" / "__init__.py").write_text("WIDTH = 4\n")
    (project / "myproject" / "networks.py").write_text(
        "import torch\n"
        "from stable_baselines3.common.torch_layers import BaseFeaturesExtractor\n"
        "from myproject.parts import WIDTH\n"
        "class Extractor(BaseFeaturesExtractor):\n"
        "    def __init__(self, space):\n"
        "        super().__init__(space, WIDTH)\n"
        "        self.layer = torch.nn.Linear(space.shape[0], WIDTH)\n"
        "    def forward(self, seen):\n"
        "        return self.layer(seen)\n"
    )
    (project / "myproject" / ".env").write_text("PASSWORD=secret\n")
    (project / "mypolicies.py").write_text("def schedule(progress):\n    return 0.001 * progress\n")
    trained_there = run_script(PROJECT, cwd=project)
    loaded = run_script(ELSEWHERE.format(uri=f"sqlite:///{project / 'mlflow.db'}"), cwd=elsewhere)

    assert trained_there.returncode == 0, trained_there.stderr
    assert not list(project.glob("mlruns/**/.env"))
    assert list(project.glob("mlruns/**/myproject/networks.py"))
    assert loaded.stdout.startswith("(3,)"), loaded.stderr


def test_code_that_the_user_names_is_checked_when_the_callback_is_made(tmp_path: Path) -> None:
    from tracking_callbacks.errors import ConfigError
    from tracking_callbacks.huggingface import MLflowTrainerCallback
    from tracking_callbacks.sb3 import MLflowSB3Callback

    for callback in (MLflowSB3Callback, MLflowTrainerCallback):
        with pytest.raises(ConfigError, match=r"code_paths: there is no file or folder 'nowhere\.py'"):
            callback(code_paths=["nowhere.py"])
        with pytest.raises(ConfigError, match="code_paths: expected a list"):
            callback(code_paths="nowhere.py")
