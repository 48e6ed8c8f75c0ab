"""Complete, true MLflow runs for Hugging Face's Trainer and Stable-Baselines3, which never slow or stop training."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracking_callbacks._runs.run import Run
    from tracking_callbacks._runs.tracker import MLflowTracker
    from tracking_callbacks._values.alerts import Alert
    from tracking_callbacks._values.promotion import Promotion
    from tracking_callbacks._writing.report import DeliveryReport
    from tracking_callbacks.errors import (
        ConfigError,
        InputError,
        InvalidNameError,
        MetricValueError,
        TrackingError,
    )
    from tracking_callbacks.settings import Delivery, Recording

__all__ = [
    "Alert",
    "ConfigError",
    "Delivery",
    "DeliveryReport",
    "InputError",
    "InvalidNameError",
    "MLflowTracker",
    "MetricValueError",
    "Promotion",
    "Recording",
    "Run",
    "TrackingError",
    "__version__",
]

__version__ = "0.2.0"

_HOMES = {
    "Alert": "_values.alerts",
    "Delivery": "settings",
    "DeliveryReport": "_writing.report",
    "MLflowTracker": "_runs.tracker",
    "Promotion": "_values.promotion",
    "Recording": "settings",
    "Run": "_runs.run",
}


def __getattr__(name: str) -> object:
    """Import what is used when it is used: the delivery process, which is in this package, needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
