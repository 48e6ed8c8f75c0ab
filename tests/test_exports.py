"""The public names match the design, and each module declares its exports."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil

import tracking_callbacks

PUBLIC = {
    "tracking_callbacks": {
        *("MLflowTracker", "Recording", "Delivery", "Promotion", "Run", "DeliveryReport", "__version__"),
        *("Alert", "TrackingError", "ConfigError", "InputError", "InvalidNameError", "MetricValueError"),
    },
    "tracking_callbacks.huggingface": {
        *("MLflowTrainerCallback", "ClassificationMetrics", "MultiLabelMetrics", "RegressionMetrics"),
        "TokenClassificationMetrics",
    },
    "tracking_callbacks.sb3": {"MLflowSB3Callback"},
}

# These packages only hold modules; nothing is imported from them directly.
PACKAGES_WITHOUT_NAMES = (
    *("._callbacks", "._episodes", "._runs", "._writing", "._delivery", "._delivery.stores", "._journal", "._values"),
    ".flavors",
)


def test_the_public_names_are_those_of_the_design() -> None:
    for module, names in PUBLIC.items():
        assert set(importlib.import_module(module).__all__) == names


def test_every_module_declares_its_exports_and_has_them() -> None:
    for info in pkgutil.walk_packages(tracking_callbacks.__path__, "tracking_callbacks."):
        if info.name.endswith((".__main__", *PACKAGES_WITHOUT_NAMES)):
            continue
        if info.name == "tracking_callbacks.integrations.ray" and importlib.util.find_spec("ray") is None:
            continue  # Ray has an environment to itself
        module = importlib.import_module(info.name)

        assert all(hasattr(module, name) for name in module.__all__), info.name
        assert module.__doc__, info.name


def test_everything_public_is_documented() -> None:
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.isclass(thing):
                continue
            assert inspect.getdoc(thing), name
            for verb, member in vars(thing).items():
                if not verb.startswith("_") and callable(member):
                    assert inspect.getdoc(member), f"{name}.{verb}"


def test_signatures_are_those_of_the_design() -> None:
    from tracking_callbacks.huggingface import MLflowTrainerCallback
    from tracking_callbacks.sb3 import MLflowSB3Callback

    def keywords(function: object) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    assert keywords(tracking_callbacks.MLflowTracker) == [
        *("tracking_uri", "experiment_name", "config", "registry_uri", "tags", "record", "delivery", "alerts"),
    ]
    assert keywords(tracking_callbacks.MLflowTracker.start_run) == [
        *("run_name", "tags", "parent", "run_id", "run_key", "start_time"),
    ]
    assert keywords(MLflowTrainerCallback) == [
        *("tracker", "run_name", "tags", "log_model", "registered_model_name", "aliases"),
        *("promote", "code_paths", "register_trials", "log_checkpoints"),
    ]
    assert keywords(MLflowSB3Callback) == [
        *("tracker", "run_name", "tags", "log_model", "best_by", "log_model_every", "registered_model_name"),
        *("aliases", "promote", "code_paths", "register_trials", "returns", "periods_per_year", "initial_account"),
        *("benchmark", "trials", "verbose"),
    ]
