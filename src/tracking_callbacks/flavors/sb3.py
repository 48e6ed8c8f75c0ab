"""MLflow flavor for Stable-Baselines3 and sb3-contrib agents.

A saved agent is a folder with an ``MLmodel`` file, SB3's own ``model.zip`` and, where the agent was trained
behind ``VecNormalize``, its statistics. It loads in two ways:

- `load_model` gives the algorithm object (``PPO``, ``SAC``, …), ready to predict or to be trained on;
- ``mlflow.pyfunc.load_model`` (and ``mlflow models predict`` or ``serve``) gives
  ``predict(observations) -> actions`` for a batch, with ``params={"deterministic": False}`` to sample instead.

Both take observations as the environment gives them: the statistics are applied in predict. mlflow is imported
when a function is called, never on import.
"""

from __future__ import annotations

import base64
import copy
import importlib
import inspect
import json
import logging
import shutil
import sys
import zipfile
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import stable_baselines3
from gymnasium import Env, Space, spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.her import HerReplayBuffer

from tracking_callbacks._callbacks.user_code import code_of, modules_in_pickle
from tracking_callbacks._journal.confined import delete
from tracking_callbacks.flavors import sb3_agent
from tracking_callbacks.flavors.sb3_agent import FLAVOR_NAME, Observations, _load_pyfunc, load_agent

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

__all__ = ["FLAVOR_NAME", "_load_pyfunc", "load_model", "log_model", "save_model", "save_snapshot"]

logger = logging.getLogger(__name__)

_AGENT_FILE = "model.zip"
_STATISTICS_FILE = "vecnormalize.pkl"
_CODE_FOLDER = "code"
_PICKLED = ":serialized:"  # key of an attribute's pickle in model.zip, undocumented (SB3 2.9.2)
_LOADER_MODULE = "tracking_callbacks_sb3"  # the copy of sb3_agent.py in the model folder

_ALWAYS_NEEDED = ("cloudpickle", "gymnasium", "numpy", "stable-baselines3", "torch")
_MODULES_NEEDED = {"gymnasium", "numpy", "stable_baselines3", "torch"}

# Wrappers that leave observations as they are.
_OBSERVERS = (VecMonitor, VecCheckNan, VecVideoRecorder)


def save_model(
    sb3_model: BaseAlgorithm,
    path: str | Path,
    *,
    vec_normalize: VecNormalize | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Observations | None = None,
    code_paths: list[str] | None = None,
    conda_env: dict[str, Any] | str | None = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    snapshot: str | Path | None = None,
) -> None:
    """Save an agent as an MLflow model in the folder `path`.

    Args:
        sb3_model: Any algorithm of Stable-Baselines3 or sb3-contrib, or your own subclass of one.
        path: A folder that does not exist yet, or is empty.
        vec_normalize: The statistics to save; by default those of the agent's own environment.
        mlflow_model: The MLmodel to complete; a new one by default.
        signature: Types and shapes; taken from the agent's spaces by default.
        input_example: A batch of raw observations, shape (n, *observation shape), or a dict of such batches.
            By default the agent's last observation, or a sample of the space.
        code_paths: Files and folders that the agent needs (custom policies, feature extractors). By default those
            below the project root whose modules the saved agent names.
        conda_env: As in MLflow's own flavors.
        pip_requirements: Replaces the default requirements, which are the installed versions.
        extra_pip_requirements: Added to the default requirements.
        metadata: Free-form values for the MLmodel file.
        snapshot: Folder written by `save_snapshot`: save the agent as it was then, not as it is now.

    Raises:
        MlflowException: `path` is not empty.
    """
    from mlflow import pyfunc
    from mlflow.models import Model
    from mlflow.models.utils import _save_example  # undocumented (MLflow 3.17.2): every flavor of MLflow calls it

    folder = Path(path)
    _prepare(folder)
    statistics = vec_normalize or sb3_model.get_vec_normalize_env()
    space, normalizes = _raw_observation_space(sb3_model, statistics)
    if snapshot is None:
        _save_agent(sb3_model, folder, statistics)
    else:
        shutil.copytree(snapshot, folder, dirs_exist_ok=True)
    _copy_code(folder / _CODE_FOLDER, code_of(_modules_of(folder)) if code_paths is None else code_paths)
    environment = _save_environment(folder, sb3_model, conda_env, pip_requirements, extra_pip_requirements)

    mlmodel = mlflow_model if mlflow_model is not None else Model()
    example = input_example if input_example is not None else _last_observation(sb3_model, statistics, space)
    _save_example(mlmodel, example, str(folder))
    mlmodel.signature = signature if signature is not None else _signature(sb3_model, space)
    if metadata is not None:
        mlmodel.metadata = metadata
    pyfunc.add_to_model(mlmodel, loader_module=_LOADER_MODULE, code=_CODE_FOLDER, **environment)
    mlmodel.add_flavor(
        FLAVOR_NAME,
        data=_AGENT_FILE,
        algorithm=_class_path(type(sb3_model)),
        policy=_class_path(type(sb3_model.policy)),
        vec_normalize=_STATISTICS_FILE if statistics is not None else None,
        normalizes_observations=normalizes,
        replay_buffer_needs_env=_replay_needs_env(sb3_model),
        stable_baselines3_version=stable_baselines3.__version__,
        code=_CODE_FOLDER,
    )
    mlmodel.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    mlmodel.save(str(folder / "MLmodel"))


def save_snapshot(sb3_model: BaseAlgorithm, folder: str | Path) -> None:
    """Keep an agent as it is now, statistics included, for a later ``save_model(…, snapshot=folder)``.

    This does not use MLflow, so it is cheap enough in the middle of a training run.

    Args:
        sb3_model: The agent.
        folder: The folder to write to; its contents are replaced.
    """
    folder = Path(folder)
    delete(folder, within=folder.parent)
    folder.mkdir(parents=True)
    _save_agent(sb3_model, folder, sb3_model.get_vec_normalize_env())


def log_model(
    sb3_model: BaseAlgorithm,
    name: str = "model",
    *,
    registered_model_name: str | None = None,
    **kwargs: Any,
) -> ModelInfo:
    """Log an agent in the active MLflow run, as ``mlflow.sklearn.log_model`` does for an estimator.

    Args:
        sb3_model: The agent.
        name: The name of the logged model.
        registered_model_name: Register it as the next version under this name.
        **kwargs: Arguments of `save_model`, and of ``mlflow.models.Model.log`` (``params``, ``tags``, …).
    """
    from mlflow.models import Model

    info: ModelInfo = Model.log(
        artifact_path=None,
        name=name,
        flavor=importlib.import_module(__name__),
        registered_model_name=registered_model_name,
        sb3_model=sb3_model,
        **kwargs,
    )
    return info


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    env: Env[Any, Any] | VecEnv | None = None,
    device: str = "auto",
    custom_objects: dict[str, Any] | None = None,
) -> BaseAlgorithm:
    """Load an agent as an object of its own class.

    Without `env`, ``predict`` takes raw observations and applies the saved statistics, until the agent is given
    an environment. With `env`, that environment is wrapped in ``VecNormalize`` with the saved statistics, and
    ``predict`` takes what ``model.get_env()`` returns, as everywhere in SB3. The statistics are frozen and rewards
    stay raw; ``model.get_vec_normalize_env().training = True`` lets the statistics move again. A hindsight replay
    buffer (``HerReplayBuffer``) needs the environment; without `env`, the agent is loaded without it.

    Args:
        model_uri: ``models:/name@alias``, ``models:/name/1``, ``runs:/…/model``, or a local folder.
        dst_path: Where to download to; a temporary folder by default.
        env: An environment as it was before ``VecNormalize``.
        device: Where the networks go: "auto", "cpu", "cuda", …
        custom_objects: Replacements for saved attributes, by name, that cannot be restored here; as in SB3's ``load``.

    Raises:
        MlflowException: There is no such model, it has no flavor of this name, or its class cannot be imported or is
            not an SB3 algorithm.
    """
    from mlflow.artifacts import download_artifacts

    folder = download_artifacts(artifact_uri=str(model_uri), dst_path=dst_path)
    return load_agent(Path(folder), env=env, device=device, custom_objects=custom_objects)


def _save_agent(model: BaseAlgorithm, folder: Path, statistics: VecNormalize | None) -> None:
    model.save(folder / _AGENT_FILE)
    if statistics is not None:
        statistics.save(str(folder / _STATISTICS_FILE))


def _prepare(folder: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise MlflowException(f"{str(folder)!r} exists and is not empty", error_code=RESOURCE_ALREADY_EXISTS)


def _modules_of(folder: Path) -> set[str]:
    """Return the modules that a saved agent names: SB3 keeps each attribute as base64 of a pickle, or as JSON."""
    with zipfile.ZipFile(folder / _AGENT_FILE) as archive:
        attributes = json.loads(archive.read("data"))
    pickles = [one[_PICKLED] for one in attributes.values() if isinstance(one, dict) and _PICKLED in one]
    return set().union(*(modules_in_pickle(base64.b64decode(text)) for text in pickles))


def _copy_code(folder: Path, code_paths: list[str]) -> None:
    """Copy the user's code and the loader of this flavor into the model's code folder."""
    folder.mkdir()
    for source in map(Path, code_paths):
        if source.is_dir():
            shutil.copytree(
                source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"), dirs_exist_ok=True
            )
        else:
            shutil.copy(source, folder)
    shutil.copyfile(sb3_agent.__file__, folder / f"{_LOADER_MODULE}.py")


def _raw_observation_space(model: BaseAlgorithm, statistics: VecNormalize | None) -> tuple[Space[Any], bool]:
    """Return the space of the observations that predict takes, and whether it normalizes them.

    They are normalized only if every wrapper between the agent and VecNormalize leaves observations alone, or does
    what the policy does by itself (channels first). A frame stack, for one, cannot be normalized with the statistics
    of one frame.
    """
    venv, space = _inside(model.get_env(), (*_OBSERVERS, VecTransposeImage), model.observation_space)
    if statistics is None:
        return space, False
    if venv is statistics:
        return _inside(statistics.venv, _OBSERVERS, statistics.venv.observation_space)[1], True
    if venv is None or statistics.observation_space.shape == model.observation_space.shape:
        return statistics.observation_space, True
    logger.warning(
        "%s stands between the agent and VecNormalize: the saved model expects observations that are already "
        "normalized",
        type(venv).__name__,
    )
    return model.observation_space, False


def _inside(
    venv: VecEnv | None, passed: tuple[type[VecEnvWrapper], ...], space: Space[Any]
) -> tuple[VecEnv | None, Space[Any]]:
    """Return the environment inside the wrappers of the classes `passed`, and its observation space."""
    while isinstance(venv, passed):
        venv = venv.venv
        space = venv.observation_space
    return venv, space


def _last_observation(model: BaseAlgorithm, statistics: VecNormalize | None, space: Space[Any]) -> Observations:
    """Return a batch of one raw observation: the last one that the agent saw, otherwise a sample of the space."""
    # Both are undocumented (SB3 2.9.2).
    seen = getattr(statistics, "old_obs", None) if statistics is not None else model._last_obs
    if isinstance(space, spaces.Dict):
        parts = seen if isinstance(seen, dict) else {}
        return {key: _batch_of_one(parts.get(key), inner) for key, inner in space.spaces.items()}
    return _batch_of_one(seen, space)


def _batch_of_one(seen: Any, space: Space[Any]) -> NDArray[Any]:
    if isinstance(seen, np.ndarray) and len(seen) and seen.shape[1:] == space.shape:
        return seen[:1].astype(space.dtype)
    fresh = copy.deepcopy(space)  # sampling must not advance the agent's own generator
    fresh.seed(0)
    return np.asarray(fresh.sample(), dtype=space.dtype)[np.newaxis]


def _replay_needs_env(model: BaseAlgorithm) -> bool:
    buffer = getattr(model, "replay_buffer_class", None)
    return isinstance(buffer, type) and issubclass(buffer, HerReplayBuffer)


def _signature(model: BaseAlgorithm, space: Space[Any]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    def batch_of(inner: Space[Any], name: str | None = None) -> TensorSpec:
        return TensorSpec(np.dtype(inner.dtype), (-1, *(inner.shape or ())), name)

    if isinstance(space, spaces.Dict):
        inputs = Schema([batch_of(inner, name) for name, inner in space.spaces.items()])
    else:
        inputs = Schema([batch_of(space)])
    params = [ParamSpec("deterministic", DataType.boolean, True)]
    if hasattr(model.policy, "lstm_actor"):
        params.append(ParamSpec("episode_start", DataType.boolean, False))
        params.append(ParamSpec("return_state", DataType.boolean, False))
        params.append(ParamSpec("state", DataType.double, [], (-1,)))
    if "action_masks" in inspect.signature(model.predict).parameters:
        params.append(ParamSpec("action_masks", DataType.boolean, [], (-1,)))
    signature = ModelSignature(
        inputs=inputs, outputs=Schema([batch_of(model.action_space)]), params=ParamSchema(params)
    )
    # Undocumented (MLflow 3.17.2): the model checks its inputs by itself. Otherwise MLflow would refuse float64 where
    # the space is float32, one observation, and lists.
    signature._is_signature_from_type_hint = True
    return signature


def _save_environment(
    folder: Path,
    model: BaseAlgorithm,
    conda_env: dict[str, Any] | str | None,
    pip_requirements: list[str] | str | None,
    extra_pip_requirements: list[str] | str | None,
) -> dict[str, str]:
    """Write the files that recreate the environment, and return their names as ``add_to_model`` takes them."""
    import yaml

    # Undocumented (MLflow 3.17.2), and untyped: every flavor of MLflow calls these functions.
    environment: Any = importlib.import_module("mlflow.utils.environment")
    environment._validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    if conda_env is not None:
        conda, pip, constraints = environment._process_conda_env(conda_env)
    else:
        default = _requirements(model) if pip_requirements is None else None
        conda, pip, constraints = environment._process_pip_requirements(
            default, pip_requirements, extra_pip_requirements
        )
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, default_flow_style=False), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(pip), encoding="utf-8")
    if constraints:
        (folder / "constraints.txt").write_text("\n".join(constraints), encoding="utf-8")
    environment._PythonEnv.current().to_yaml(str(folder / "python_env.yaml"))
    return {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}


def _requirements(model: BaseAlgorithm) -> list[str]:
    """Return the packages that loading the agent needs, pinned to the installed versions.

    MLflow would infer them by loading the agent. A local build label (``2.13.0+cpu``) is dropped, because no index
    offers it.
    """
    needed = set(_ALWAYS_NEEDED)
    classes = {base for part in (model, model.policy) for base in type(part).__mro__}
    classes |= {value for value in model.policy_kwargs.values() if isinstance(value, type)}
    others = {cls.__module__.partition(".")[0] for cls in classes} - _MODULES_NEEDED - sys.stdlib_module_names
    if others:
        by_module = distributions.packages_distributions()  # reads the metadata of every installed package
        needed |= {by_module[name][0].lower().replace("_", "-") for name in others if name in by_module}
    return [f"{name}=={distributions.version(name).partition('+')[0]}" for name in sorted(needed)]


def _class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
