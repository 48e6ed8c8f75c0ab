"""Finds the weights that a model with an adapter needs and that neither its base model nor the adapter has.

A BERT that was trained as a masked language model has no pooler. A classifier made from it initialises one at random,
and PEFT saves only the classifier's last layer with the adapter: loaded elsewhere, such a model predicts something
else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["weights_beyond"]

# transformers still renames these when it loads an old checkpoint.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_KNOWN_SHARE = 0.9  # of a model's weights; below it, transformers renames them while it loads the checkpoint


def weights_beyond(model: Any, base: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a ``PeftModel``'s inner model that loading its base and its adapter does not restore.

    Args:
        model: The ``PeftModel``.
        base: Folder with the base model's checkpoint.

    Returns:
        Tensors by their names in a model without adapters. It is empty if they are all restored, or if it cannot be
        told, because the checkpoint cannot be read or names its weights differently.
    """
    inner = model.get_base_model()
    shapes = _shapes_in(base)
    own = _own_weights(model, inner)
    if not shapes or not own:
        return {}
    prefix = f"{inner.base_model_prefix}."
    found = {name: _shape_of(name, prefix, shapes) for name in own}
    backbone = [name for name in own if name.startswith(prefix)] or list(own)
    known = sum(found[name] is not None for name in backbone) >= _KNOWN_SHARE * len(backbone)
    trained = {_plain(name) for name, weight in inner.named_parameters() if weight.requires_grad}
    beyond = {}
    for name, weight in own.items():
        is_missing = found[name] is None and (known or not name.startswith(prefix))
        differs = found[name] is not None and found[name] != tuple(weight.shape)
        if is_missing or differs or name in trained:
            beyond[name] = weight
    return beyond


def _own_weights(model: Any, inner: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the inner model that do not belong to the adapter, by their names without it."""
    prefix = getattr(model.base_model, "prefix", None)
    embeddings = [module for module in (inner.get_input_embeddings(), inner.get_output_embeddings()) if module]
    of_embeddings = {id(weight) for module in embeddings for weight in module.parameters()}  # PEFT saves resized ones
    weights = {}
    for name, weight in inner.state_dict(keep_vars=True).items():
        of_adapter = ".modules_to_save." in name or ".original_module." in name or "trainable_tokens" in name
        if of_adapter or (prefix and prefix in name) or id(weight) in of_embeddings:
            continue
        weights[_plain(name)] = weight.detach()
    return weights


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".token_adapter.", ".")


def _shape_of(name: str, prefix: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    for key in (name, f"{prefix}{name}", name.removeprefix(prefix)):
        if key in shapes:
            return shapes[key]
    return None


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight in a checkpoint, without reading the weights; empty if it has none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _files_of(folder):
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as weights:
                shapes |= {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        else:
            import torch

            tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
            shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for old, new in _OLD_NAMES:
        shapes = {key.replace(old, new): shape for key, shape in shapes.items()}
    return shapes


def _files_of(folder: Path) -> list[Path]:
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / part for part in sorted(set(parts))]
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
    return []
