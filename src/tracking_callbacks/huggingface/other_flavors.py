"""Saves models that MLflow's transformers flavor cannot hold: in another flavor, or at least their files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks.errors import TrackingError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["is_sentence_transformer", "save_files", "save_pytorch", "save_sentence_transformer"]


def is_sentence_transformer(model: object) -> bool:
    """Return whether `model` is one of the package sentence-transformers."""
    package = sys.modules.get("sentence_transformers")
    return package is not None and isinstance(model, package.SentenceTransformer)


def save_sentence_transformer(model: Any, folder: Path, code_paths: list[str] | None = None) -> None:
    """Save a ``SentenceTransformer`` in MLflow's flavor for it.

    Args:
        model: The model; its mode stays unchanged.
        folder: The folder to create; it must not exist.
        code_paths: Files and folders with the code that defines the model's classes.
    """
    import mlflow.sentence_transformers

    mode = model.training
    try:
        mlflow.sentence_transformers.save_model(
            model,
            str(folder),
            code_paths=code_paths,
            input_example=["The quick brown fox jumps over the lazy dog."],
            pip_requirements=_requirements("mlflow", "sentence-transformers", "transformers", "torch"),
        )
    finally:
        model.train(mode)


def save_pytorch(model: nn.Module, folder: Path, code_paths: list[str] | None = None) -> None:
    """Save any module in MLflow's pytorch flavor, pickled with its class; classes of a script or notebook by value.

    Args:
        model: The model; its mode stays unchanged.
        folder: The folder to create; it must not exist.
        code_paths: Files and folders with the code that defines the model's classes.

    Raises:
        TrackingError: It cannot be pickled.
    """
    import mlflow.pytorch

    packages = {type(module).__module__.partition(".")[0] for module in model.modules()} & {"transformers", "peft"}
    try:
        mlflow.pytorch.save_model(
            model,
            str(folder),
            code_paths=code_paths,
            serialization_format="pickle",
            pip_requirements=_requirements("mlflow", "torch", "cloudpickle", *sorted(packages)),
        )
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:  # what pickling raises
        raise TrackingError(f"a {type(model).__name__} cannot be pickled: {error}") from error


def save_files(model: Any, folder: Path) -> None:
    """Save a model's weights, and its configuration if it has one, without a flavor.

    Args:
        model: The model.
        folder: The folder to create.
    """
    folder.mkdir()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return
    import torch

    weights: Mapping[str, Any] = model.state_dict()
    torch.save(weights, folder / "state_dict.pt")


def _requirements(*names: str) -> list[str]:
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
