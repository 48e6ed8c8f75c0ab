"""What every callback says about a training run at its start: params, configuration files, the framework."""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracking_callbacks._runs.run import Run
from tracking_callbacks._values.names import safe_name

__all__ = [
    "Description",
    "evaluation_folder",
    "framework_tags",
    "log_description",
    "role_name",
    "tag_framework",
    "telling_first",
]

logger = logging.getLogger(__name__)

MAX_PARAMS_VARIABLE = "MLFLOW_MAX_LOG_PARAMS"


@dataclass(frozen=True, slots=True)
class Description:
    """What a training run is made of.

    Attributes:
        params: Flat names and values, for MLflow's params.
        documents: File name to the whole of a configuration, as JSON can hold it.
    """

    params: dict[str, Any]
    documents: dict[str, Any] = field(default_factory=dict)


def telling_first(params: Mapping[str, Any], telling: Sequence[str]) -> dict[str, Any]:
    """Return `params` in the order of what they tell, because a store with a limit refuses the last ones.

    Args:
        params: Names and values.
        telling: The names that come first, in this order; ``lora.r`` stands for ``lora.default.r`` and
            ``learning_rate`` for ``learning_rate.start`` too. Params without a value (None, False, an empty list) come
            last, and all others keep their order in between.
    """
    places = {name: place for place, name in enumerate(telling)}

    def place(name: str) -> int:
        parts = name.split(".")
        known = (places.get(one) for one in (name, f"{parts[0]}.{parts[-1]}", ".".join(parts[:-1])))
        found = next((one for one in known if one is not None), None)
        if found is not None:
            return found
        return len(places) + ((not params[name] and params[name] != 0) or params[name] is False)

    return {name: params[name] for name in sorted(params, key=place)}


def log_description(run: Run, description: Description) -> None:
    """Log the params, at most ``MLFLOW_MAX_LOG_PARAMS`` of them, and the documents under ``config/``."""
    params = dict(description.params)
    if (limit := _params_limit()) is not None and limit < len(params):
        logger.info("%s: logging the first %d of %d params", MAX_PARAMS_VARIABLE, limit, len(params))
        params = dict(itertools.islice(params.items(), limit))
    run.log_params(params)
    for name, document in description.documents.items():
        run.record("config", lambda name=name, document=document: run.log_dict(document, f"config/{name}"))  # type: ignore[misc]


def framework_tags(framework: str, version: str | None) -> dict[str, str]:
    """Return the tags that name a framework and its version."""
    return {"framework": framework} | ({"framework_version": version} if version else {})


def tag_framework(run: Run, framework: str, version: str | None = None, *, model_type: str | None = None) -> None:
    """Tag the run with the framework that trains, its version, and the type of the model."""
    known = framework_tags(framework, version) | ({"model_type": model_type} if model_type else {})
    run.record("environment", lambda: run.set_tags(known))


def role_name(role: str) -> str:
    """Return what a dataset or an evaluation is called, as one part of an artifact's path."""
    return safe_name(role).replace("/", "_")


def evaluation_folder(role: str, step: int) -> str:
    """Return the folder among the artifacts that the reports of one evaluation go to."""
    return f"evaluation/{role_name(role)}/step-{step}"


def _params_limit() -> int | None:
    text = os.environ.get(MAX_PARAMS_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        _warn_of_limit(text)
        return None
    return int(text)


@functools.cache
def _warn_of_limit(text: str) -> None:
    logger.warning("%s: expected a number, 0 or more, got %r; it is ignored", MAX_PARAMS_VARIABLE, text)
