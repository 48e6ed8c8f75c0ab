"""What vectorized environments say of themselves; those outside SB3 lack some of it, and each lack costs one piece.

SuperSuit's ``concat_vec_envs_v1`` has no reset infos, the EnvPool adapter of SB3's documentation has no attributes of
single environments, and batched simulators have no single environments at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from tracking_callbacks._episodes.returns import Info
from tracking_callbacks._values.conversion import to_jsonable
from tracking_callbacks._writing.guard import never_in_the_way

__all__ = ["attribute_of", "identity", "innermost", "is_monitored", "names_of_features", "reset_info"]


def innermost(env: VecEnv) -> Any:
    """Return the vectorized environment inside all wrappers."""
    return getattr(env, "unwrapped", env)


def attribute_of(env: VecEnv, index: int, name: str) -> Any:
    """Return an attribute of one environment inside its wrappers; None if it has none, or runs in another process."""
    envs = getattr(innermost(env), "envs", None)
    return None if envs is None else getattr(getattr(envs[index], "unwrapped", None), name, None)


def identity(env: VecEnv) -> str | None:
    """Return the same text for environments that are made in the same way; None if that is unknown.

    It is the registered id and its keyword arguments. An environment with a frame of prices is known by that instead.
    """
    spec = attribute_of(env, 0, "spec")
    if spec is None or attribute_of(env, 0, "df") is not None:
        return None
    arguments = json.dumps(to_jsonable(spec.kwargs), sort_keys=True, default=str)
    return f"{spec.id} {hashlib.blake2b(arguments.encode(), digest_size=4).hexdigest()}"


def names_of_features(env: VecEnv) -> Sequence[Any] | None:
    """Return the names that the first environment gives to what it observes, None if it gives none.

    Gym-Trading-Env keeps them as ``_features_columns`` (undocumented, 2.1).
    """
    for name in ("feature_names", "_features_columns", "tech_indicator_list"):
        names = attribute_of(env, 0, name)
        if isinstance(names, (list, tuple)):
            return names
    return None


def reset_info(env: VecEnv, index: int) -> Info | None:
    """Return the info of the last reset of one environment, None where it is unknown."""
    # From the innermost environment (undocumented, SB3 2.9.2): wrappers keep the infos of the very first reset.
    infos = getattr(innermost(env), "reset_infos", ())
    return infos[index] if index < len(infos) else None


def is_monitored(env: VecEnv) -> bool:
    """Return whether a ``Monitor`` or ``VecMonitor`` wraps the environments."""
    return is_vecenv_wrapped(env, VecMonitor) or _has_monitors(env)


@never_in_the_way(default=False, piece="knowing whether a Monitor wraps each environment")
def _has_monitors(env: VecEnv) -> bool:
    return all(env.env_is_wrapped(Monitor))
