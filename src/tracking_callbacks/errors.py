"""Errors of tracking_callbacks.

TrackingError
├── ConfigError            wrong configuration: raised when the object is built
└── InputError             wrong input to a ``log_*`` method: raised by the call; nothing already logged is lost
    ├── InvalidNameError   a metric, param, tag, model or alias name that cannot be used
    └── MetricValueError   a metric value that is not a single number

Wrong *configuration* and wrong *input* raise early. Bad *weather* (an unreachable server, a full disk, refused
credentials) never raises: ``DeliveryReport`` and the log report it.
"""

from __future__ import annotations

__all__ = ["ConfigError", "InputError", "InvalidNameError", "MetricValueError", "TrackingError"]


class TrackingError(Exception):
    """Root of all errors that this package raises on purpose."""


class ConfigError(TrackingError, ValueError):
    """A setting that is unknown, has the wrong type, or names something that does not exist.

    Attributes:
        setting: The name of the offending setting.
    """

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


class InputError(TrackingError, ValueError):
    """An argument of a ``log_*`` method that cannot be logged."""


class InvalidNameError(InputError):
    """A metric, param, tag, model or alias name that MLflow can never accept.

    Attributes:
        name: The offending name.
    """

    def __init__(self, message: str, *, name: object) -> None:
        super().__init__(message)
        self.name = name


class MetricValueError(InputError, TypeError):
    """A metric value that is not a single number.

    Attributes:
        key: The metric's name.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key
