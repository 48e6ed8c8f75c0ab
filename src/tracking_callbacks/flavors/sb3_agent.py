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
from gymnasium import Env, Space, spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

__all__ = ["FLAVOR_NAME", "Agent", "load_agent"]

FLAVOR_NAME = "stable_baselines3"

Observations = NDArray[Any] | dict[str, NDArray[Any]]


class Agent:
    """What ``mlflow.pyfunc`` calls: raw observations in, actions out.

    A recurrent policy keeps its memory from call to call, as within an episode. The memory is cleared at the first
    call, when the batch size changes, and with ``params={"episode_start": True}``. Clients that share a served agent
    would share that memory, so each of them keeps its own: with ``params={"return_state": True}`` the answer holds the
    memory after the call, and ``params={"state": …}`` hands it back in.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model
        normalizer = model.get_vec_normalize_env()
        self._space: Space[Any] = model.observation_space if normalizer is None else normalizer.observation_space
        self._memory: tuple[NDArray[Any], ...] | None = None
        self._batch_size = 0

    def get_raw_model(self) -> BaseAlgorithm:
        """Return the algorithm object."""
        return self._model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[Any] | dict[str, Any]:
        """Return the actions for `model_input`, shape (n, *action shape), or one action for one observation.

        Args:
            model_input: Raw observations, shape (n, *observation shape), or one of them, shape (*observation shape);
                of a dict space, a dict of either or a list of dicts. They may be lists, and are cast to the type of
                the space; the channels of images may come first or last.
            params: ``deterministic`` (True by default). For recurrent policies ``episode_start``, ``state`` (what an
                earlier call returned) and ``return_state``. For ``MaskablePPO`` ``action_masks``, the masks of all
                observations one after the other (n times the number of actions): ``masks.ravel()``, because an MLflow
                param has one dimension. Without masks, all actions are allowed.

        Returns:
            The actions; with ``return_state``, a dict with ``actions`` and ``state``.

        Raises:
            ValueError: The observations, the state or the masks do not have the shape that the agent needs.
        """
        options = params or {}
        observations, batch_size, single = _as_batch(model_input, self._space)
        deterministic = bool(options.get("deterministic", True))
        masks = np.asarray(options.get("action_masks", ()), dtype=bool)
        masked = {"action_masks": masks.reshape(batch_size, -1)} if masks.size else {}
        given = np.asarray(options.get("state", ()), dtype=np.float32)
        keeps_memory = not given.size and not options.get("return_state", False)
        memory = self._split_state(given, batch_size) if given.size else None
        if keeps_memory and batch_size == self._batch_size:
            memory = self._memory
        if options.get("episode_start", False):
            memory = None
        actions, memory = self._model.predict(observations, state=memory, deterministic=deterministic, **masked)
        if keeps_memory:
            self._memory, self._batch_size = memory, batch_size
        # SB3 returns floats for MultiBinary; the signature promises the environment's own type.
        actions = actions.astype(self._model.action_space.dtype, copy=False)
        actions = actions[0] if single else actions
        if not options.get("return_state", False):
            return actions
        parts = memory if memory is not None else ()
        return {"actions": actions, "state": [value for part in parts for value in part.ravel().tolist()]}

    def _split_state(self, state: NDArray[np.float32], batch_size: int) -> tuple[NDArray[Any], ...]:
        layers, _, width = getattr(self._model.policy, "lstm_hidden_state_shape", (0, 0, 0))
        if state.size != 2 * layers * batch_size * width:
            raise ValueError(
                f"state: expected the {2 * layers * batch_size * width} numbers that an earlier call for {batch_size} "
                f"observations returned, got {state.size}"
            )
        return tuple(state.reshape(2, layers, batch_size, width))


def _as_batch(given: Any, space: Space[Any]) -> tuple[Observations, int, bool]:
    """Return `given` as a batch of observations of `space`, its size, and whether it was one observation."""
    if not isinstance(space, spaces.Dict):
        if hasattr(
            given, "to_numpy"
        ):  # a frame: of one column that holds observations, or with a column for each value
            given = given.iloc[:, 0].tolist() if given.ndim == 2 and given.shape[1] == 1 else given.to_numpy()
        batch, single = _leaf_batch(given, space, "observations")
        return batch, len(batch), single
    if isinstance(given, (list, tuple)):
        given = {name: [observation[name] for observation in given] for name in space.spaces}
    elif hasattr(given, "columns"):
        given = {name: given[name].tolist() for name in space.spaces}
    if missing := [name for name in space.spaces if name not in given]:
        raise ValueError(f"observations: expected a dict with {list(space.spaces)}, without {missing} in this one")
    leaves = {name: _leaf_batch(given[name], inner, f"observations[{name!r}]") for name, inner in space.spaces.items()}
    batches = {name: batch for name, (batch, _) in leaves.items()}
    sizes = {len(batch) for batch in batches.values()}
    if len(sizes) != 1:
        counts = {name: len(batch) for name, batch in batches.items()}
        raise ValueError(f"observations: expected the same number of each part, got {counts}")
    return batches, sizes.pop(), all(single for _, single in leaves.values())


def _leaf_batch(given: Any, space: Space[Any], name: str) -> tuple[NDArray[Any], bool]:
    shape = space.shape or ()
    try:
        array = np.asarray(given)
        array = np.asarray(array, dtype=space.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected numbers of shape (n, {_shown(shape)}), got {given!r:.200} ({error})"
        ) from None
    if array.shape[-len(shape) :] != shape and len(shape) == 3 and array.ndim in (3, 4):
        array = _with_channels_like(array, shape)
    single = array.shape == shape
    batch = array[np.newaxis] if single else array
    if batch.shape[1:] != shape:
        raise ValueError(
            f"{name}: expected shape (n, {_shown(shape)}), or ({_shown(shape)}) for one, got {np.shape(given)}"
        )
    return batch, single


def _with_channels_like(images: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return `images` with their channels first or last, wherever that gives them `shape`."""
    for source, target in ((-1, -3), (-3, -1)):
        moved = np.moveaxis(images, source, target)
        if moved.shape[-3:] == shape:
            return moved
    return images


def _shown(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Agent:
    """Load an agent behind ``mlflow.pyfunc.load_model``; ``model_config={"device": "cpu"}`` sets the device."""
    return Agent(load_agent(Path(path), device=(model_config or {}).get("device", "auto")))


def load_agent(
    folder: Path,
    env: Env[Any, Any] | VecEnv | None = None,
    device: str = "auto",
    custom_objects: dict[str, Any] | None = None,
) -> BaseAlgorithm:
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
    replaced = dict(custom_objects or {})
    if env is not None:
        env = _normalized(env, statistics)
        return algorithm.load(folder / conf["data"], env=env, device=device, custom_objects=replaced)
    if conf.get("replay_buffer_needs_env"):
        replaced = {"replay_buffer_class": None, "replay_buffer_kwargs": {}} | replaced
    model = algorithm.load(folder / conf["data"], device=device, custom_objects=replaced)
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
