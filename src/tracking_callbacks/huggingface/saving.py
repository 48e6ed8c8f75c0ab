"""Saves the trained model as an MLmodel folder, so that it loads elsewhere and predicts the same.

On the training side MLflow is imported only here and in `other_flavors`, after the training has ended.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.user_code import code_of
from tracking_callbacks._journal.confined import delete
from tracking_callbacks.errors import TrackingError
from tracking_callbacks.flavors import adapter_base
from tracking_callbacks.flavors.adapter_base import AdapterBase
from tracking_callbacks.huggingface.adapters import keep_active_adapter, merged
from tracking_callbacks.huggingface.base_model import base_model_of
from tracking_callbacks.huggingface.base_weights import weights_beyond
from tracking_callbacks.huggingface.forms import ModelForm, SavedForm
from tracking_callbacks.huggingface.tasks import NO_TASK, TEXT2TEXT, task_of

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

__all__ = ["processor_of", "save_mlmodel"]

TEXT2TEXT_PYFUNC = "tracking_callbacks.flavors.text2text"
_MODEL_FOLDER = "model"  # MLflow's name for it
_CLASSES_MODULE = "tracking_callbacks_classes"

_OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_REQUIRED = ("mlflow", "torch", "transformers")
_EXAMPLES: dict[str, Any] = {
    "text-classification": ["The quick brown fox jumps over the lazy dog."],
    "token-classification": ["The quick brown fox jumps over the lazy dog."],
    "text-generation": ["The quick brown fox"],
}


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
    model: nn.Module,
    processor: Any,
    folder: Path,
    chosen: SavedForm,
    code_paths: list[str] | None = None,
    example: str | None = None,
) -> None:
    """Save `model` into `folder` in MLflow's transformers flavor, without changing the model or using the network.

    Where transformers has no pipeline for its class, it loads as components (``return_type="components"``) and has no
    pyfunc.

    Args:
        model: The trained model; its weights, mode and configuration stay unchanged.
        processor: A tokenizer, image processor, feature extractor or multi-modal processor.
        folder: The folder to create; it must not exist.
        chosen: How to save.
        code_paths: Files and folders with the code that defines the model's classes.
        example: A text for the input example; by default one that everybody knows.

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
    task = task_of(model) or NO_TASK
    has_pipeline = task_of(model) is not None
    with _quiet("mlflow.transformers", "transformers.pipelines.base"), _mode_kept(model), _hub_left_alone():
        pipeline = _pipeline(saved, processor, task)
        mlflow.transformers.save_model(
            pipeline,
            str(folder),
            processor=processor if isinstance(processor, ProcessorMixin) else None,
            signature=infer_or_get_default_signature(pipeline) if has_pipeline else None,
            input_example=_example_for(task, example) if has_pipeline else None,
            pip_requirements=_requirements(chosen.form, task),
            base_model_path=str(chosen.base) if chosen.base else None,
            code_paths=code_paths,
            metadata={"form": str(chosen.form), "base_model": base_model_of(model) or ""},
        )
        for hidden in (folder / "code").rglob(".*"):  # such as .env
            delete(hidden, within=folder)
        if chosen.form is ModelForm.ADAPTER:
            keep_active_adapter(model, folder / "peft")
        if chosen.own_head:
            _write_adapter_base(folder / _MODEL_FOLDER, model, chosen)
        elif chosen.form is not ModelForm.ADAPTER:
            _name_own_classes(folder / _MODEL_FOLDER, saved)
    _amend_mlmodel(folder, model, chosen, task if has_pipeline else None)


def _example_for(task: str, example: str | None) -> list[str] | None:
    usual: list[str] | None = _EXAMPLES.get(task)
    return usual if usual is None or example is None else [example]


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


def _write_adapter_base(folder: Path, model: Any, chosen: SavedForm) -> None:
    """Write what loads the base model with the adapter's own head: MLflow takes it for a custom model's own code."""
    from safetensors.torch import save_file

    assert chosen.base is not None
    inner = model.get_base_model()
    config = copy.deepcopy(inner.config)
    config.architectures = [AdapterBase.__name__]
    config.auto_map = {"AutoModel": f"{Path(adapter_base.__file__).stem}.{AdapterBase.__name__}"}
    config.save_pretrained(folder)
    shutil.copy(adapter_base.__file__, folder)
    name = base_model_of(model) if chosen.revision else None
    base = {"class": type(inner).__name__, "name_or_path": name or str(chosen.base), "revision": chosen.revision}
    (folder / adapter_base.BASE_FILE).write_text(json.dumps(base, indent=2), encoding="utf-8")
    if weights := weights_beyond(model, chosen.base):
        own = {name: weight.cpu().contiguous().clone() for name, weight in weights.items()}
        save_file(own, folder / adapter_base.WEIGHTS_FILE)


def _name_own_classes(folder: Path, model: Any) -> None:
    """Let transformers find the classes of a model in the user's own modules, which lie in the model's code folder."""
    import transformers

    cls, config = type(model), type(model.config)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if hasattr(transformers, cls.__name__) or "auto_map" in content:
        return
    imported = [cls] if hasattr(transformers, config.__name__) else [config, cls]
    lines = [f"from {one.__module__} import {one.__name__}" for one in imported]
    text = "\n".join(['"""Finds the model\'s classes; written by tracking_callbacks."""', *lines, ""])
    (folder / f"{_CLASSES_MODULE}.py").write_text(text, encoding="utf-8")
    auto_map = {"AutoModel": f"{_CLASSES_MODULE}.{cls.__name__}"}
    if config in imported:
        auto_map["AutoConfig"] = f"{_CLASSES_MODULE}.{config.__name__}"
    path.write_text(json.dumps(content | {"auto_map": auto_map}, indent=2), encoding="utf-8")


def _amend_mlmodel(folder: Path, model: nn.Module, chosen: SavedForm, task: str | None) -> None:
    """Correct the MLmodel file where MLflow had to be given stand-ins.

    The folder stood in for the name of the base model. transformers has no pipeline for text2text generation, so the
    text-generation pipeline stood in, which can load such a model but not predict with it. Another pipeline stood in
    where transformers has none at all.
    """
    from mlflow.models import Model

    base = base_model_of(model)
    mlmodel = Model.load(str(folder))
    flavor = mlmodel.flavors["transformers"]
    if base:
        flavor["source_model_name"] = base
    if chosen.own_head:
        del flavor["local_base_model_path"]
        flavor |= {"pipeline_model_type": AdapterBase.__name__, "model_binary": _MODEL_FOLDER}
    elif chosen.revision is not None:
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
    if task is None:
        mlmodel.flavors.pop("python_function", None)
    mlmodel.save(str(folder / "MLmodel"))


def _requirements(form: ModelForm, task: str) -> list[str]:
    """Return requirements for loading, pinned to the installed versions without a local part such as ``+cpu``."""
    names = [*_REQUIRED]
    names += ["peft"] if form is ModelForm.ADAPTER else []
    names += ["tracking-callbacks"] if task == TEXT2TEXT else []
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


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
