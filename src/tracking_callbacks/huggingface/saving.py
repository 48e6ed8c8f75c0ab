"""Saves the trained model as an MLmodel folder, so that it loads elsewhere and predicts the same.

On the training side MLflow is imported only here, after the training has ended.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.user_code import code_of
from tracking_callbacks._journal.confined import delete
from tracking_callbacks.errors import ConfigError, TrackingError
from tracking_callbacks.huggingface.adapters import (
    active_adapters,
    has_adapters,
    is_mergeable,
    is_peft_model,
    is_quantised,
    keep_active_adapter,
    merged,
    peft_type,
)
from tracking_callbacks.huggingface.base_model import base_model_of, hub_snapshot_of

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

__all__ = ["CHOICES", "ModelForm", "SavedForm", "check_choice", "choose_form", "processor_of", "save_mlmodel"]

CHOICES = ("auto", "adapter", "merged", "full")

# Removed in transformers 5, but still the name of the task of T5 and similar models.
TEXT2TEXT = "text2text-generation"
TEXT2TEXT_PYFUNC = "tracking_callbacks.flavors.text2text"

_OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_REQUIRED = ("mlflow", "torch", "transformers")
_EXAMPLES: dict[str, Any] = {
    "text-classification": ["The quick brown fox jumps over the lazy dog."],
    "token-classification": ["The quick brown fox jumps over the lazy dog."],
    "text-generation": ["The quick brown fox"],
}


class ModelForm(enum.StrEnum):
    """How a model is saved."""

    ADAPTER = "adapter"  # only the PEFT adapter, with a reference to its base model
    MERGED = "merged"  # the base model with the adapter merged into its weights
    FULL = "full"  # the model as it is


@dataclass(frozen=True, slots=True)
class SavedForm:
    """The form chosen for a model.

    Attributes:
        form: How to save it.
        base: Folder with the base model that an adapter refers to; None for the other forms.
        revision: Commit of the base model if it is from the Hub and `base` is its copy in the local cache.
        notice: What the user should know about the choice; empty if it is obvious.
    """

    form: ModelForm
    base: Path | None = None
    revision: str | None = None
    notice: str = ""


def check_choice(log_model: str | bool, model: nn.Module | None = None) -> None:
    """Check `log_model`, and that it suits `model` if one is given.

    Raises:
        ConfigError: The choice is unknown, or `model` cannot be saved that way.
    """
    if log_model is False:
        return
    if log_model not in CHOICES:
        allowed = ", ".join(map(repr, CHOICES))
        raise ConfigError(f"log_model: expected {allowed} or False, got {log_model!r}", setting="log_model")
    if model is None or log_model == "auto":
        return
    if not has_adapters(model):
        if log_model != "full":
            raise ConfigError(
                f"log_model: {log_model!r} needs a PEFT model, got {type(model).__name__}; use 'full' or 'auto'",
                setting="log_model",
            )
    elif log_model == "adapter":
        if reason := _not_an_adapter(model):
            raise ConfigError(f"log_model: 'adapter' {reason}; use 'merged'", setting="log_model")
    elif not is_mergeable(model):
        raise ConfigError(f"log_model: {_not_mergeable(model)}; use 'adapter'", setting="log_model")


def choose_form(log_model: str, model: nn.Module) -> SavedForm:
    """Return how to save `model` so that it loads elsewhere and predicts the same.

    "auto" saves only the adapter if its base model is on the Hub and has everything else that loading needs;
    otherwise it merges the adapter into its base if it can. The other choices are taken literally.

    Raises:
        TrackingError: The model cannot be saved in the requested form, or would not load from it.
    """
    if not has_adapters(model):
        return SavedForm(ModelForm.FULL)
    if log_model in ("merged", "full"):
        if not is_mergeable(model):
            raise TrackingError(f"{_not_mergeable(model)}; use 'adapter'")
        return SavedForm(ModelForm.MERGED)
    name, snapshot = base_model_of(model), hub_snapshot_of(model)
    base = snapshot or _folder_with_config(name)
    lost = _lost_without_the_model(model, base)
    not_alone = _not_an_adapter(model)
    if log_model == "auto" and (not_alone or snapshot is None or lost) and is_mergeable(model):
        if not_alone:
            reason = f"an adapter alone {not_alone}"
        elif snapshot is not None:
            reason = f"an adapter alone would lose the {', '.join(lost)}, which {name} does not have"
        elif name and Path(name).exists():
            reason = f"the base model is only the local path {name}"
        elif name:
            reason = f"the commit of the base model {name} is not known"
        else:
            reason = "the base model has no name"
        return SavedForm(ModelForm.MERGED, notice=f"{reason}: the adapter is merged into it, and loads on any machine")
    if not_alone:
        raise TrackingError(f"an adapter alone {not_alone}, and {_not_mergeable(model)}")
    if base is None:
        raise TrackingError(f"an adapter must refer to its base model, but {name!r} is not a folder with a config.json")
    if unloadable := [field for field in lost if field != "label names"]:
        raise TrackingError(f"an adapter alone would not load: its {', '.join(unloadable)} differs from that of {name}")
    notices = [f"loads only where the path {base} exists"] if snapshot is None else []
    notices += [f"predicts without the {field}" for field in lost]
    if is_quantised(model):
        notices.append("loads on a base that is not quantised, so its predictions differ slightly")
    remedy = "; log_model='merged' has no such limit" if is_mergeable(model) else ""
    return SavedForm(
        ModelForm.ADAPTER,
        base=base,
        revision=snapshot.name if snapshot else None,
        notice=f"the adapter {' and '.join(notices)}{remedy}" if notices else "",
    )


def processor_of(processing_class: Any, dataloader: DataLoader[Any] | None, model: nn.Module) -> Any:
    """Return the tokenizer or processor of the model's input: the trainer's, its collator's, or the base model's.

    Raises:
        TrackingError: None of them exists; the base model's must be on this machine.
    """
    if processing_class is not None:
        return processing_class
    collator = getattr(dataloader, "collate_fn", None)
    # transformers wraps it to drop unused columns, in a RemoveColumnsCollator (undocumented, 5.23.0).
    collator = getattr(collator, "data_collator", collator)
    if (tokenizer := getattr(collator, "tokenizer", None)) is not None:
        return tokenizer
    from transformers import AutoTokenizer

    name = base_model_of(model)
    try:
        return AutoTokenizer.from_pretrained(name or "", local_files_only=True)
    except (OSError, ValueError) as error:
        missing = f"none was found with its base model {name}" if name else "it has no base model"
        raise TrackingError(
            f"the model needs its tokenizer or processor, and {missing}: pass it to Trainer(processing_class=...)"
        ) from error


def code_paths_of(model: nn.Module, processor: Any) -> list[str]:
    """Return the user's own code that defines the classes of a model, of its parts and of its processor."""
    objects = [processor, *model.modules()]
    return code_of({cls.__module__ for cls in {base for one in objects for base in type(one).__mro__}})


def save_mlmodel(
    model: nn.Module, processor: Any, folder: Path, chosen: SavedForm, code_paths: list[str] | None = None
) -> None:
    """Save `model` into `folder` in MLflow's transformers flavor, without changing the model or using the network.

    Args:
        model: The trained model; its weights, mode and configuration stay unchanged.
        processor: A tokenizer, image processor, feature extractor or multi-modal processor.
        folder: The folder to create; it must not exist.
        chosen: How to save.
        code_paths: Files and folders with the code that defines the model's classes.

    Raises:
        TrackingError: MLflow's flavor does not support this kind of model.
    """
    import mlflow.transformers
    from mlflow.transformers.signature import infer_or_get_default_signature  # undocumented (MLflow 3.17.2)
    from transformers import ProcessorMixin

    if chosen.form is ModelForm.MERGED:
        saved = merged(model)
    elif chosen.form is ModelForm.FULL:
        saved = copy.copy(model)  # the same weights, so that only the copy gets another name
    else:
        saved = model
    if chosen.form is not ModelForm.ADAPTER:
        # With any other name, MLflow would look up a model card and a licence on the Hub.
        saved.name_or_path = str(folder)
    task = _task(model)
    with _quiet("mlflow.transformers", "transformers.pipelines.base"), _mode_kept(model), _hub_left_alone():
        pipeline = _pipeline(saved, processor, task)
        mlflow.transformers.save_model(
            pipeline,
            str(folder),
            processor=processor if isinstance(processor, ProcessorMixin) else None,
            signature=infer_or_get_default_signature(pipeline),
            input_example=_EXAMPLES.get(task),
            pip_requirements=_requirements(chosen.form, task),
            base_model_path=str(chosen.base) if chosen.base else None,
            code_paths=code_paths,
            metadata={"form": str(chosen.form), "base_model": base_model_of(model) or ""},
        )
        for hidden in (folder / "code").rglob(".*"):  # such as .env
            delete(hidden, within=folder)
        if chosen.form is ModelForm.ADAPTER:
            keep_active_adapter(model, folder / "peft")
    _amend_mlmodel(folder, model, chosen, task)


def _pipeline(model: Any, processor: Any, task: str) -> Any:
    from transformers import (
        FeatureExtractionMixin,
        ImageProcessingMixin,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )
    from transformers import pipeline as make_pipeline

    kinds = {
        "tokenizer": PreTrainedTokenizerBase,
        "image_processor": ImageProcessingMixin,
        "feature_extractor": FeatureExtractionMixin,
        "processor": ProcessorMixin,
    }
    part = next((name for name, kind in kinds.items() if isinstance(processor, kind)), None)
    if part is None:
        raise TrackingError(f"a {type(processor).__name__} cannot be saved: it is not a tokenizer or other processor")
    # Pass the model's current device, because by default a pipeline moves the model to the first accelerator it finds.
    # A model that accelerate has spread over several devices has no single one.
    device = None if getattr(model, "hf_device_map", None) else model.device
    known: Any = "text-generation" if task == TEXT2TEXT else task
    # A copy, because the text-generation pipeline makes the tokenizer pad on the left.
    return make_pipeline(task=known, model=model, device=device, **{part: copy.deepcopy(processor)})


def _task(model: Any) -> str:
    # Undocumented (transformers 5.23.0), as is `_model_mapping`: no public function gives the task of a model's class.
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    from transformers.pipelines import PIPELINE_REGISTRY

    base = model.get_base_model() if is_peft_model(model) else model
    name = type(base).__name__
    for task, entry in PIPELINE_REGISTRY.supported_tasks.items():
        for auto_class in entry["pt"]:
            known = auto_class._model_mapping._model_mapping.get(base.config.model_type, ())
            if name == known or name in (known if isinstance(known, (tuple, list)) else ()):
                return str(task)
    if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return TEXT2TEXT
    raise TrackingError(f"transformers has no pipeline for a {name}, and MLflow saves only models that have one")


def _amend_mlmodel(folder: Path, model: nn.Module, chosen: SavedForm, task: str) -> None:
    """Correct the MLmodel file where MLflow had to be given stand-ins.

    The folder stood in for the name of the base model. transformers has no pipeline for text2text generation, so the
    text-generation pipeline stood in, which can load such a model but not predict with it.
    """
    from mlflow.models import Model

    base = base_model_of(model)
    mlmodel = Model.load(str(folder))
    flavor = mlmodel.flavors["transformers"]
    if base:
        flavor["source_model_name"] = base
    if chosen.revision is not None:
        del flavor["local_base_model_path"]
        flavor["source_model_revision"] = chosen.revision
        for part in flavor["components"]:
            flavor |= {f"{part}_name": base, f"{part}_revision": chosen.revision}
    if chosen.form is not ModelForm.ADAPTER:
        # MLflow writes a licence notice that refers to the folder, which stood in for the name.
        delete(folder / "LICENSE.txt", within=folder)
    if task == TEXT2TEXT:
        flavor |= {"task": TEXT2TEXT, "instance_type": "Text2TextGenerationPipeline"}
        mlmodel.flavors["python_function"]["loader_module"] = TEXT2TEXT_PYFUNC
    mlmodel.save(str(folder / "MLmodel"))


def _requirements(form: ModelForm, task: str) -> list[str]:
    """Return requirements for loading, pinned to the installed versions without a local part such as ``+cpu``."""
    names = [*_REQUIRED]
    names += ["peft"] if form is ModelForm.ADAPTER else []
    names += ["tracking-callbacks"] if task == TEXT2TEXT else []
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _not_mergeable(model: nn.Module) -> str:
    return f"adapters of type {peft_type(model)} cannot be merged into this base"


def _not_an_adapter(model: nn.Module) -> str:
    """Return why the adapter of `model` cannot be saved by itself, or an empty string if it can."""
    if not is_peft_model(model):
        return f"needs a PeftModel (get_peft_model), and {type(model).__name__} had it added by add_adapter"
    if len(names := active_adapters(model)) > 1:
        return f"is one adapter, and {', '.join(names)} are active together"
    return ""


def _folder_with_config(name: str | None) -> Path | None:
    return Path(name) if name and Path(name, "config.json").is_file() else None


def _lost_without_the_model(model: Any, base: Path | None) -> list[str]:
    """Return what loading takes from the base model's configuration and what differs there from `model`'s."""
    if base is None:
        return []
    from transformers import AutoConfig

    trained, origin = model.config, AutoConfig.from_pretrained(base, local_files_only=True)
    differs = {
        "number of labels": trained.num_labels != origin.num_labels,
        "label names": trained.id2label != origin.id2label,
        "vocabulary size": getattr(trained, "vocab_size", None) != getattr(origin, "vocab_size", None),
    }
    return [field for field, different in differs.items() if different]


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence loggers: MLflow and transformers warn about what is intended here, and report failures by exceptions."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _hub_left_alone() -> Iterator[None]:
    """Keep PEFT from asking the Hub whether the vocabulary changed, which `choose_form` has already checked."""
    before = os.environ.get(_OFFLINE_VARIABLE)
    os.environ[_OFFLINE_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OFFLINE_VARIABLE]
        else:
            os.environ[_OFFLINE_VARIABLE] = before


@contextlib.contextmanager
def _mode_kept(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
