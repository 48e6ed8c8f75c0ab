"""The params of an agent at the start of a training run: every setting with its effective value."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stable_baselines3.common import utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from tracking_callbacks._callbacks.description import telling_first
from tracking_callbacks._values.conversion import flatten, to_jsonable
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["describe"]

# Arguments that are described separately below, or that say nothing about the training run.
_ELSEWHERE = {"self", "policy", "env", "policy_kwargs", "device", "seed", "_init_setup_model"}
_SCHEDULES = {"learning_rate", "clip_range", "clip_range_vf", "delta_std"}
_SCHEDULE_CLASS: Any = getattr(utils, "FloatSchedule", ())  # a plain function before SB3 2.7
# Arguments of A2C that can only be read back from its policy's optimizer.
_OF_THE_OPTIMIZER: dict[str, Callable[[Any], Any]] = {
    "use_rms_prop": lambda policy: "RMSprop" in policy.optimizer_class.__name__,
    "rms_prop_eps": lambda policy: policy.optimizer_kwargs.get("eps"),
}
_NORMALIZATION = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_ADDRESS = re.compile(r"(?:\w+\.|<locals>\.)*(?P<cls>\w+) object at 0x[0-9a-fA-F]+")  # of a class without a __repr__
_INNERMOST = re.compile(r"<(?P<cls>\w+)(?:<(?P<id>[^<>\s]+)>| instance)>")


_NOTHING: dict[str, Any] = {}

# What tells two agents apart first, see `telling_first`.
_TELLING = (
    *("algorithm", "env.id", "total_timesteps", "learning_rate", "gamma", "batch_size", "n_steps", "n_envs", "policy"),
    *("policy.net_arch", "policy.parameters", "policy.trainable_parameters", "seed", "n_epochs", "gae_lambda"),
    *("ent_coef", "clip_range", "vf_coef", "buffer_size", "learning_starts", "train_freq", "gradient_steps", "tau"),
)


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the params of a training run of `model` that begins now.

    A constant schedule becomes one value. Any other schedule becomes ``<name>.start`` and ``<name>.end``, its values at
    the start and at the end of the training run (progress remaining 1.0 and 0.0).
    """
    described = {
        "algorithm": type(model).__name__,
        "total_timesteps": model._total_timesteps,  # undocumented (SB3 2.9.2)
        "seed": model.seed,
        "device": str(model.device),
        **_hyperparameters(model),
        **_policy(model),
        **_network(model),
        **_environment(model),
        **_normalization_of(model),
    }
    return telling_first(described, _TELLING)


@never_in_the_way(default=_NOTHING, piece="the algorithm's settings")
def _hyperparameters(model: BaseAlgorithm) -> dict[str, Any]:
    return dict(_settings(model))


def _settings(model: BaseAlgorithm) -> Iterator[tuple[str, Any]]:
    """Yield every argument of the algorithm's constructor that can be read back, with its present value."""
    for name in _constructor_arguments(type(model)):
        # Undocumented (SB3 2.9.2): a model keeps its arguments under these names.
        value = getattr(model, name, getattr(model, f"_{name}", getattr(model, f"{name}_schedule", _ABSENT)))
        if name in _OF_THE_OPTIMIZER:
            value = _OF_THE_OPTIMIZER[name](model.policy)
        if name in _ELSEWHERE or value is _ABSENT:
            continue
        if isinstance(value, _SCHEDULE_CLASS) or (name in _SCHEDULES and callable(value)):
            yield from _schedule(name, value)
        elif isinstance(value, TrainFreq):
            yield name, f"{value.frequency} {value.unit.value}"
        else:
            yield from flatten({name: to_jsonable(value)}).items()


_ABSENT = object()


def _constructor_arguments(algorithm: type) -> dict[str, None]:
    """Return the names of the constructor's arguments; ``**kwargs`` means those of the base class too."""
    names: dict[str, None] = {}
    for cls in algorithm.__mro__:
        if "__init__" not in cls.__dict__:
            continue
        parameters = inspect.signature(cls.__dict__["__init__"]).parameters.values()
        names |= dict.fromkeys(
            parameter.name
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        )
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _schedule(name: str, schedule: Any) -> Iterator[tuple[str, Any]]:
    values = [_scheduled(schedule, progress) for progress in (1.0, 0.75, 0.5, 0.25, 0.0)]
    if len(set(values)) == 1:
        yield name, values[0]
    else:
        yield f"{name}.start", values[0]
        yield f"{name}.end", values[-1]


@never_in_the_way
def _scheduled(schedule: Any, progress: float) -> float:
    return float(schedule(progress))


@never_in_the_way(default=_NOTHING, piece="the policy's settings")
def _policy(model: BaseAlgorithm) -> dict[str, Any]:
    policy, policy_class = model.policy, model.policy_class
    alias = next((name for name, cls in model.policy_aliases.items() if cls is policy_class), None)
    described: dict[str, Any] = {
        "policy": alias or policy_class.__name__,
        "policy.class": to_jsonable(policy_class),
    }
    for name in ("net_arch", "activation_fn", "features_extractor_class"):
        if hasattr(policy, name):
            described[f"policy.{name}"] = to_jsonable(getattr(policy, name))
    described |= flatten({"optimizer": to_jsonable(getattr(policy, "optimizer_kwargs", {}) or {})})
    described |= (
        flatten({"policy_kwargs": to_jsonable(model.policy_kwargs)}) if model.policy_kwargs else {"policy_kwargs": {}}
    )
    return described


@never_in_the_way(default=_NOTHING, piece="the size of the network")
def _network(model: BaseAlgorithm) -> dict[str, Any]:
    policy: Any = model.policy
    optimizer = getattr(policy, "optimizer", None) or getattr(getattr(policy, "actor", None), "optimizer", None)
    if parameters := list(policy.parameters()):
        total = sum(parameter.numel() for parameter in parameters)
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    else:  # SBX: the attributes of its policies hold flax's train states
        total = trainable = sum(
            _count(vars(state)["params"]) for state in vars(policy).values() if _is_train_state(state)
        )
    return {
        "policy.parameters": total,
        "policy.trainable_parameters": trainable,
        "optimizer": _name_of(getattr(policy, "optimizer_class", None)) if optimizer is None else _name_of(optimizer),
    }


def _is_train_state(value: Any) -> bool:
    return "params" in getattr(value, "__dict__", {})


def _count(tree: Any) -> int:
    """Return the number of elements of all arrays in nested mappings."""
    return sum(map(_count, tree.values())) if isinstance(tree, Mapping) else math.prod(tree.shape)


def _name_of(optimizer: Any) -> str | None:
    while isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    if optimizer is None:
        return None
    return str(getattr(optimizer, "__name__", type(optimizer).__name__))


@never_in_the_way(default=_NOTHING, piece="the description of the environments")
def _environment(model: BaseAlgorithm) -> dict[str, Any]:
    env = model.get_env()
    described: dict[str, Any] = {
        "env.observation_space": str(to_jsonable(model.observation_space)),
        "env.action_space": str(to_jsonable(model.action_space)),
    }
    if env is None:
        return described
    vec_envs = [type(layer).__name__ for layer in _layers(env)]
    described |= {"n_envs": env.num_envs, "env.vec_env": vec_envs[-1], **_names(env)}
    if vec_envs[:-1]:
        described["env.vec_wrappers"] = vec_envs[:-1]
    return described


@never_in_the_way(default=_NOTHING, piece="the settings of VecNormalize")
def _normalization_of(model: BaseAlgorithm) -> dict[str, Any]:
    normalizer = model.get_vec_normalize_env()
    if normalizer is None:
        return {}
    settings = {name: to_jsonable(getattr(normalizer, name, None)) for name in _NORMALIZATION}
    return {f"vec_normalize.{name}": value for name, value in settings.items() if value is not None}


@never_in_the_way(default=_NOTHING, piece="the id of the environments")
def _names(env: VecEnv) -> dict[str, Any]:
    """Return the id and wrappers of the first environment.

    They are parsed from its text, ``<Monitor<OrderEnforcing<CartPoleEnv<CartPole-v1>>>>``. A worker process can always
    send text, but it dies of a spec that cannot be pickled (a lambda in ``gym.make(..., reward_function=...)``).
    """
    text = _ADDRESS.sub(r"\g<cls> instance", str(env.env_method("__str__", indices=[0])[0]))
    innermost = _INNERMOST.search(text)
    if innermost is None:
        return {}
    wrappers = text[: innermost.start()].strip("<").split("<") if innermost.start() else []
    described: dict[str, Any] = {
        "env.id": innermost["id"] or innermost["cls"],
        "env.class": innermost["cls"],
    }
    return described | ({"env.wrappers": wrappers} if wrappers else {})


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env
