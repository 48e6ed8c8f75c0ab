"""Complete, true MLflow runs for Hugging Face's Trainer and Stable-Baselines3, which never slow or stop training."""

from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
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
    "ConfigError",
    "Delivery",
    "DeliveryReport",
    "InputError",
    "InvalidNameError",
    "MLflowTracker",
    "MetricValueError",
    "Recording",
    "Run",
    "TrackingError",
    "__version__",
]

__version__ = "0.1.0"
