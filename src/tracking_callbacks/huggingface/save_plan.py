"""Decides how a trained model is saved, before the first step: what will not load is known while it can be changed."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.trained_model import PreparedModel
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import TrackingError
from tracking_callbacks.huggingface.adapters import is_peft_model
from tracking_callbacks.huggingface.forms import ModelForm, choose_form
from tracking_callbacks.huggingface.other_flavors import (
    is_sentence_transformer,
    save_files,
    save_pytorch,
    save_sentence_transformer,
)
from tracking_callbacks.huggingface.saving import code_paths_of, processor_of, save_mlmodel
from tracking_callbacks.huggingface.sharded import is_sharded
from tracking_callbacks.huggingface.tasks import task_of
from tracking_callbacks.huggingface.trainer_datasets import example_text

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

__all__ = ["SavePlan", "announce_limits", "is_module", "plan_saving", "prepare_model", "saver_of", "unwrapped"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavePlan:
    """How a model is saved.

    Attributes:
        flavor: MLflow's name of the flavor.
        limits: What the user should know about it before training: how the model loads, and what would make it load
            better; empty if it loads as a pipeline.
        processor: The tokenizer or processor that is saved with it; None for flavors without one.
    """

    flavor: str
    limits: str = ""
    processor: Any = None


def is_module(model: object) -> bool:
    """Return whether `model` is a module of torch; that of SetFit is not, and is complete only after its training."""
    from torch import nn

    return isinstance(model, nn.Module)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile(model)``; every other model as it is."""
    inner: nn.Module = getattr(model, "_orig_mod", model)  # undocumented (torch 2.13)
    return inner


def plan_saving(model: nn.Module, processing_class: Any, dataloader: DataLoader[Any] | None) -> SavePlan:
    """Return the best of MLflow's flavors that can hold `model`.

    Args:
        model: The model, not wrapped by ``torch.compile``.
        processing_class: The trainer's tokenizer or processor, None if it has none.
        dataloader: That of training, whose collator may have a tokenizer.
    """
    from transformers import PreTrainedModel

    name = type(model).__name__
    if not is_module(model):
        return SavePlan("none", f"MLflow has no flavor for a {name}; its files become the artifacts model_files")
    if is_sentence_transformer(model):
        return SavePlan("sentence_transformers")
    load = "load it with mlflow.pytorch.load_model"
    trained: Any = model
    inner = trained.get_base_model() if is_peft_model(model) else trained
    if not isinstance(inner, PreTrainedModel):
        return SavePlan("pytorch", f"a {name} is not a model of transformers, so it is pickled; {load}")
    if not _is_importable(type(inner)):
        where = "is defined in the script itself" if type(inner).__module__ == "__main__" else "cannot be imported"
        return SavePlan(
            "pytorch",
            f"the class {type(inner).__name__} {where}, so the model is pickled; {load}. "
            "In a module of your project it would load with its tokenizer",
        )
    try:
        processor = processor_of(processing_class, dataloader, model)
    except TrackingError as error:
        return SavePlan("pytorch", f"{error}. Until then it is pickled without one; {load}")
    if task_of(model) is None:
        limits = (
            f"transformers has no pipeline for a {name}: load it with "
            "mlflow.transformers.load_model(uri, return_type='components'); it has no pyfunc"
        )
        return SavePlan("transformers", limits, processor)
    return SavePlan("transformers", processor=processor)


def _is_importable(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return cls.__module__ != "__main__" and getattr(module, cls.__name__, None) is cls


def _limits_of(plan: SavePlan, model: nn.Module, log_model: str) -> str:
    """Return what will not work with the model as it is going to be saved; empty if everything will."""
    if plan.flavor != "transformers":
        return plan.limits
    try:
        choose_form(log_model, model)
    except TrackingError as error:
        return f"it will not be saved, because {error}"
    return plan.limits


@never_in_the_way
def announce_limits(given: Mapping[str, Any], log_model: str) -> None:
    """Say before the first step how the model will not load, as long as that can be changed.

    Args:
        given: What ``Trainer`` passed to the hook.
        log_model: The callback's argument.
    """
    model = unwrapped(given["model"])
    if limits := _limits_of(_plan(model, given), model, log_model):
        logger.warning("model: %s", limits)


def prepare_model(
    given: Mapping[str, Any],
    step: int,
    *,
    log_model: str,
    code_paths: list[str] | None,
    with_example: bool,
) -> PreparedModel:
    """Return how the trained model is saved.

    Args:
        given: What ``Trainer`` passed to the hook.
        step: Training step of the model.
        log_model: The callback's argument.
        code_paths: Files and folders with code that the model needs; None finds them.
        with_example: Whether a row of the evaluation becomes the input example.

    Raises:
        TrackingError: It cannot be saved in the requested form.
    """
    model = unwrapped(given["model"])
    if is_module(model) and is_sharded(model):  # what this process did with it alone would wait for the others
        raise TrackingError("its weights are spread over processes, and they could not be gathered")
    example = example_text(given.get("eval_dataloader"), given.get("processing_class")) if with_example else None
    save, tags = saver_of(_plan(model, given), model, log_model, code_paths, example)
    return PreparedModel(save, step=step, tags=tags, save_files=functools.partial(save_files, model))


def _plan(model: nn.Module, given: Mapping[str, Any]) -> SavePlan:
    return plan_saving(model, given.get("processing_class"), given.get("train_dataloader"))


def _refuse(reason: str, folder: Path) -> None:  # noqa: ARG001 - what saves a model takes a folder
    raise TrackingError(reason)


def saver_of(
    plan: SavePlan, model: nn.Module, log_model: str, code_paths: list[str] | None, example: str | None = None
) -> tuple[Callable[[Path], object], dict[str, str]]:
    """Return what saves `model` into a folder, and tags that say how it is saved.

    Args:
        plan: How it is saved.
        model: The model.
        log_model: The callback's argument.
        code_paths: Files and folders with code that it needs; None finds them.
        example: A text for its input example.

    Raises:
        TrackingError: It cannot be saved in the requested form.
    """
    if plan.flavor == "none":
        return functools.partial(_refuse, plan.limits), {}
    paths = (code_paths_of(model, plan.processor) if code_paths is None else code_paths) or None
    if plan.flavor == "sentence_transformers":
        return functools.partial(save_sentence_transformer, model, code_paths=paths), {"form": "full"}
    if plan.flavor == "pytorch":
        return functools.partial(save_pytorch, model, code_paths=paths), {"form": "full"}
    chosen = choose_form(log_model, model)
    if chosen.notice:
        # For an adapter this is a limitation; for a merged model it only explains the choice.
        logger.log(logging.WARNING if chosen.form is ModelForm.ADAPTER else logging.INFO, "model: %s", chosen.notice)
    tags = {"form": str(chosen.form)} | ({"form_notice": chosen.notice} if chosen.notice else {})

    def save(folder: Path) -> None:
        save_mlmodel(model, plan.processor, folder, chosen, paths, example)

    return save, tags
