"""The prices that a trading environment uses, as an input of the run."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tracking_callbacks._callbacks.dataset_inputs import log_input
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.sb3.environments import innermost

__all__ = ["log_prices"]


@never_in_the_way
def log_prices(run: Run, env: VecEnv | None, role: str, *, context: str) -> None:
    """Record the frame of prices of the first environment, if it has one: gym-anytrading, Gym-Trading-Env, FinRL.

    Environments in other processes are skipped, because the whole frame would have to come through a pipe.
    """
    vec_env = None if env is None else innermost(env)
    if not isinstance(vec_env, DummyVecEnv):
        return
    market: Any = vec_env.envs[0].unwrapped
    frame: Any = getattr(market, "df", None)
    if not hasattr(frame, "iloc"):
        return
    bounds = getattr(market, "frame_bound", None)
    if bounds is not None:  # gym-anytrading: the days that are played, and the window before the first one
        start, end = bounds
        frame = frame.iloc[max(0, start - getattr(market, "window_size", 0)) : end]
    spec = vec_env.envs[0].spec
    name = spec.id if spec is not None else type(market).__name__
    log_input(run, frame, role, context=context, name=f"{name} prices")
