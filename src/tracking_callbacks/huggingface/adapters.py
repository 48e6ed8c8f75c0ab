"""What is special about models with PEFT adapters: which models have them, what can be merged, how they are saved.

There are two kinds. A ``PeftModel`` wraps its base model. A transformers model that got its adapters from
``add_adapter`` is not a ``PeftModel``, but has the same layers inside.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks._journal.confined import delete

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "active_adapters",
    "adapter_configs",
    "has_adapters",
    "is_mergeable",
    "is_peft_model",
    "is_quantised",
    "keep_active_adapter",
    "merged",
    "peft_type",
]


def is_peft_model(model: Any) -> bool:
    """Return whether `model` is a ``PeftModel``."""
    if "peft" not in sys.modules:
        return False  # a PEFT model cannot exist without it
    from peft import PeftModel

    return isinstance(model, PeftModel)


def has_adapters(model: Any) -> bool:
    """Return whether `model` has adapters of either kind."""
    # Undocumented (transformers 5.23.0): `add_adapter` sets it, and `active_adapters` raises where none was added.
    return is_peft_model(model) or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_configs(model: Any) -> dict[str, Any]:
    """Return the PEFT configurations of `model` by adapter name; empty if it has none."""
    return dict(getattr(model, "peft_config", None) or {})


def active_adapters(model: Any) -> list[str]:
    """Return the names of the adapters that `model` uses to predict."""
    active = model.active_adapters
    return list(active() if callable(active) else active)


def peft_type(model: Any) -> str:
    """Return the type of the active adapter, such as ``LORA``."""
    kind = adapter_configs(model)[active_adapters(model)[0]].peft_type
    return str(getattr(kind, "value", kind))


def is_quantised(model: Any) -> bool:
    """Return whether the base model's weights are quantised."""
    return getattr(getattr(model, "config", None), "quantization_config", None) is not None


def is_mergeable(model: Any) -> bool:
    """Return whether the active adapters can be merged into the base model's weights without loss."""
    from peft import PEFT_TYPE_TO_TUNER_MAPPING  # undocumented (PEFT 0.21.2)

    configs = [adapter_configs(model)[name] for name in active_adapters(model)]
    if is_quantised(model) or any(config.is_prompt_learning for config in configs):
        return False
    return all(hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type), "merge_and_unload") for config in configs)


def merged(model: nn.Module) -> Any:
    """Return a copy on the CPU with the active adapters merged in.

    Merging in place and unmerging afterwards would leave rounding errors in the weights.
    """
    trained: Any = copy.deepcopy(model).to("cpu")
    if is_peft_model(trained):
        return trained.merge_and_unload(safe_merge=True)
    from peft.tuners.tuners_utils import BaseTunerLayer

    # PEFT merges through its wrapper, which is missing here, but each layer can merge itself. The methods of the layers
    # are undocumented (PEFT 0.21.2).
    for name, layer in list(trained.named_modules()):
        if hasattr(layer, "unload_and_optionally_merge_module"):  # as modules_to_save does
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(trained.get_submodule(parent), child, plain)
    del trained.peft_config
    trained._hf_peft_config_loaded = False
    return trained


def keep_active_adapter(model: Any, folder: Path) -> None:
    """Replace what ``save_pretrained`` wrote to `folder` by just the active adapter, at the top of the folder.

    PEFT saves all adapters, each except ``default`` in a subfolder, and loads from the top.
    """
    (name,) = active_adapters(model)
    if list(adapter_configs(model)) == ["default"]:
        return
    delete(folder, within=folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary, selected_adapters=[name])
        saved = temporary / name
        shutil.copytree(saved if saved.is_dir() else temporary, folder)
    finally:
        delete(temporary, within=folder.parent)
