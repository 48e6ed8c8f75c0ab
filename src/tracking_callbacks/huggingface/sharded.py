"""Gathers a model whose weights are spread over processes (FSDP, DeepSpeed ZeRO-3), so that it can be saved whole."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracking_callbacks.huggingface.adapters import is_peft_model

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["gathered", "is_sharded"]


def is_sharded(model: nn.Module) -> bool:
    """Return whether this process holds only its part of the weights of `model`."""
    return _is_zero3(model) or _is_fsdp(model)


def gathered(model: nn.Module) -> nn.Module | None:
    """Return a copy of `model` with all of its weights on the CPU; every process must call it at the same time.

    It uses the frameworks' own means: ``torch.distributed.checkpoint.state_dict`` and
    ``deepspeed.zero.GatheredParameters``.

    Args:
        model: A model of transformers, or a ``PeftModel`` around one, as the trainer has it.

    Returns:
        The copy in the first process; None in the others.
    """
    import torch.distributed

    weights = _zero3_weights(model) if _is_zero3(model) else _fsdp_weights(model)
    if torch.distributed.get_rank() != 0:
        return None
    whole = _empty_copy(getattr(model, "module", model))
    whole.load_state_dict(weights, strict=False)  # buffers that are not saved keep their values
    on_cpu: nn.Module = whole.to("cpu")
    return on_cpu


def _is_zero3(model: nn.Module) -> bool:
    return "deepspeed" in sys.modules and any(hasattr(weight, "ds_id") for weight in model.parameters())


def _is_fsdp(model: nn.Module) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is not None and any(isinstance(weight, tensor.DTensor) for weight in model.parameters()):
        return True
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules())


def _fsdp_weights(model: nn.Module) -> Mapping[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _zero3_weights(model: nn.Module) -> Mapping[str, torch.Tensor]:
    import deepspeed

    weights = {}
    for name, weight in model.named_parameters():  # one at a time: the whole model may not fit on this device
        with deepspeed.zero.GatheredParameters([weight]):
            weights[name] = weight.detach().cpu().clone()
    return weights | {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}


def _empty_copy(model: Any) -> Any:
    """Return a model of the same class and configuration, with the same adapters, whose weights mean nothing yet."""
    if not is_peft_model(model):
        fresh = type(model)(copy.deepcopy(model.config))
        fresh.name_or_path = model.name_or_path
        return fresh
    from peft import get_peft_model

    inner = _empty_copy(model.get_base_model())
    first, *others = model.peft_config
    fresh = get_peft_model(inner, copy.deepcopy(model.peft_config[first]), adapter_name=first)
    for name in others:
        fresh.add_adapter(name, copy.deepcopy(model.peft_config[name]))
    fresh.set_adapter(model.active_adapter)
    return fresh
