"""How a saved Stable-Baselines3 agent is loaded.

Every saved agent carries a copy of this file (``code/tracking_callbacks_sb3.py``), and ``mlflow.pyfunc`` loads
the agent through that copy. So the agent loads where tracking_callbacks is not installed, with the code that it
was saved with, and the copy shadows no installed package. For the same reason this module imports nothing else of
tracking_callbacks.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

__all__ = ["FLAVOR_NAME", "Agent", "load_agent"]

FLAVOR_NAME = "stable_baselines3"

Observations = NDArray[Any] | dict[str, NDArray[Any]]


class Agent:
    """What ``mlflow.pyfunc`` calls: a batch of raw observations in, a batch of actions out.

    A recurrent policy keeps its memory from call to call, as within an episode. The memory is cleared at the first
    call, when the batch size changes, and with ``params={"episode_start": True}``.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model
        self._memory: tuple[NDArray[Any], ...] | None = None
        self._batch_size = 0

    def get_raw_model(self) -> BaseAlgorithm:
        """Return the algorithm object."""
        return self._model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[Any]:
        """Return the actions for `model_input`, shape (n, *action shape).

        Args:
            model_input: Raw observations, shape (n, *observation shape), or a dict of such batches.
            params: ``deterministic`` (True by default); for recurrent policies ``episode_start``; for
                ``MaskablePPO`` ``action_masks``, the masks of all observations one after the other (n times the
                number of actions): ``masks.ravel()``, because an MLflow param has one dimension. Without masks, all
                actions are allowed.
        """
        options = params or {}
        observations = _as_observations(model_input)
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        if options.get("episode_start", False) or len(first) != self._batch_size:
            self._memory = None
        self._batch_size = len(first)
        masks = np.asarray(options.get("action_masks", ()), dtype=bool)
        masked = {"action_masks": masks.reshape(len(first), -1)} if masks.size else {}
        actions, self._memory = self._model.predict(
            observations, state=self._memory, deterministic=bool(options.get("deterministic", True)), **masked
        )
        # SB3 returns floats for MultiBinary; the signature promises the environment's own type.
        return actions.astype(self._model.action_space.dtype, copy=False)


def _as_observations(model_input: Any) -> Observations:
    if isinstance(model_input, dict):
        return {key: np.asarray(value) for key, value in model_input.items()}
    return np.asarray(model_input)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Agent:
    """Load an agent behind ``mlflow.pyfunc.load_model``; ``model_config={"device": "cpu"}`` sets the device."""
    return Agent(load_agent(Path(path), device=(model_config or {}).get("device", "auto")))


def load_agent(folder: Path, env: Env[Any, Any] | VecEnv | None = None, device: str = "auto") -> BaseAlgorithm:
    """Load the agent saved in the model folder `folder`; see `tracking_callbacks.flavors.sb3.load_model`."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    flavors = Model.load(str(folder)).flavors
    if FLAVOR_NAME not in flavors:
        raise MlflowException.invalid_parameter_value(
            f"the model in {str(folder)!r} has no {FLAVOR_NAME!r} flavor, only {sorted(flavors)}"
        )
    conf = flavors[FLAVOR_NAME]
    code = str(folder / conf["code"])
    if code not in sys.path:
        sys.path.insert(0, code)
    algorithm = _algorithm_class(conf["algorithm"])
    statistics = _load_statistics(folder / conf["vec_normalize"]) if conf["vec_normalize"] else None
    if env is not None:
        return algorithm.load(folder / conf["data"], env=_normalized(env, statistics), device=device)
    model = algorithm.load(folder / conf["data"], device=device)
    if statistics is not None and conf["normalizes_observations"]:
        # Undocumented (SB3 2.9.2): get_vec_normalize_env() returns it, as it did in training.
        model._vec_normalize_env = statistics
        model.__class__ = _reading_raw_observations(type(model))
    return model


def _algorithm_class(path: str) -> type[BaseAlgorithm]:
    """Import the class at the dotted `path`; the path comes from a file, so only an SB3 algorithm is accepted."""
    from mlflow.exceptions import MlflowException

    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MlflowException.invalid_parameter_value(
            f"the agent's class {path!r} cannot be imported here ({error}); install its package, or save the "
            "agent with code_paths=[…]"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
        raise MlflowException.invalid_parameter_value(
            f"the agent's class {path!r} is not a Stable-Baselines3 algorithm"
        )
    return found


def _load_statistics(file: Path) -> VecNormalize:
    with file.open("rb") as stream:
        statistics = pickle.load(stream)  # noqa: S301 (SB3 unpickles model.zip too)
    if not isinstance(statistics, VecNormalize):
        raise TypeError(f"{file.name} holds a {type(statistics).__name__}, expected VecNormalize")
    # SB3 deletes these two when it pickles the object, and fails if they are missing (undocumented, SB3 2.9.2).
    statistics.class_attributes, statistics.returns = {}, np.zeros(0)
    statistics.training = False
    statistics.norm_reward = False
    return statistics


def _normalized(env: Env[Any, Any] | VecEnv, statistics: VecNormalize | None) -> Env[Any, Any] | VecEnv:
    """Return `env` behind the saved statistics; a VecNormalize that is already there takes them over."""
    if statistics is None:
        return env
    if not isinstance(env, VecEnv):
        monitored = Monitor(env)
        env = DummyVecEnv([lambda: monitored])
    own = unwrap_vec_normalize(env)
    if own is None:
        statistics.set_venv(env)
        return statistics
    own.ret_rms = statistics.ret_rms
    if statistics.norm_obs:
        own.obs_rms = statistics.obs_rms
    return env


def _reading_raw_observations(algorithm: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """Return a subclass of `algorithm` whose ``predict`` normalizes while the agent has no environment."""

    class ReadsRawObservations(algorithm):  # type: ignore[valid-type, misc]
        def predict(
            self, observation: Observations, *args: Any, **kwargs: Any
        ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
            if self.get_env() is None:
                observation = self._vec_normalize_env.normalize_obs(observation)
            return super().predict(observation, *args, **kwargs)  # type: ignore[no-any-return]

    # An agent that is saved again must name the original algorithm.
    ReadsRawObservations.__name__ = algorithm.__name__
    ReadsRawObservations.__qualname__ = algorithm.__qualname__
    ReadsRawObservations.__module__ = algorithm.__module__
    return ReadsRawObservations
