"""Checks the callback's arguments, before anything starts."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from typing import Literal

import numpy as np

from tracking_callbacks._values.conversion import to_scalar
from tracking_callbacks.errors import ConfigError, MetricValueError

__all__ = ["LogModel", "check_best_by", "check_count", "check_log_model", "check_periods"]

LogModel = bool | Literal["best"]


def check_log_model(log_model: object) -> LogModel:
    """Return `log_model`.

    Raises:
        ConfigError: It is another value.
    """
    if log_model is True or log_model is False or log_model == "best":
        return log_model
    raise ConfigError(f"log_model: expected True, False or 'best', got {log_model!r}", setting="log_model")


def check_best_by(best_by: object) -> str:
    """Return the name of a statistic of evaluations.

    Raises:
        ConfigError: It is not a text, or empty.
    """
    if isinstance(best_by, str) and best_by.strip():
        return best_by.removeprefix("eval/")
    raise ConfigError(f"best_by: expected 'mean_reward' or the name of a statistic, got {best_by!r}", setting="best_by")


def check_count(count: object, setting: str) -> int | None:
    """Return the argument `setting`, a number of steps or trials.

    Raises:
        ConfigError: It is not a positive whole number.
    """
    if count is None:
        return None
    with contextlib.suppress(TypeError):
        if not isinstance(count, bool) and (number := operator.index(count)) > 0:  # type: ignore[arg-type]
            return number
    raise ConfigError(f"{setting}: expected a positive whole number or None, got {count!r}", setting=setting)


def check_periods(periods: object) -> float:
    """Return the number of steps in a year.

    Raises:
        ConfigError: It is not a positive number.
    """
    with contextlib.suppress(MetricValueError):
        number = to_scalar("periods_per_year", periods)
        if 0 < number < math.inf and not isinstance(periods, (bool, np.bool_)):
            return int(number) if isinstance(periods, numbers.Integral) else number
    raise ConfigError(f"periods_per_year: expected a positive number, got {periods!r}", setting="periods_per_year")
