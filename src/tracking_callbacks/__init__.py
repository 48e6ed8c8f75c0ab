"""Complete, truthful MLflow runs from Hugging Face and Stable-Baselines3 trainings that are never held up by them."""

from tracking_callbacks.errors import (
    ConfigError,
    InputError,
    InvalidNameError,
    MetricValueError,
    TrackingError,
)
from tracking_callbacks.report import DeliveryReport
from tracking_callbacks.run import Run
from tracking_callbacks.tracker import MLflowTracker

__all__ = [
    "ConfigError",
    "DeliveryReport",
    "InputError",
    "InvalidNameError",
    "MLflowTracker",
    "MetricValueError",
    "Run",
    "TrackingError",
    "__version__",
]

__version__ = "0.1.0"
