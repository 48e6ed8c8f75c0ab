"""Where a model's weights came from: a name, and the folder in the Hub's cache if it is a name on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracking_callbacks.huggingface.adapters import adapter_configs

if TYPE_CHECKING:
    from torch import nn

__all__ = ["base_model_of", "hub_snapshot_of"]


def base_model_of(model: nn.Module) -> str | None:
    """Return the Hub id or the path that the model's weights came from, or None for a model built in code."""
    for config in adapter_configs(model).values():
        if config.base_model_name_or_path:
            return str(config.base_model_name_or_path)
    return getattr(model, "name_or_path", None) or None


def hub_snapshot_of(model: nn.Module) -> Path | None:
    """Return the folder in the Hub's cache that the model was loaded from; its name is the commit.

    It is None for any other origin. It is also None if the cache holds several commits of the base model and it is
    unknown which one was loaded, because transformers 5.23 no longer notes the commit in the configuration.
    """
    name = base_model_of(model)
    if name is None or Path(name).exists():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # Undocumented (transformers 5.23.0); older versions set it.
    known = getattr(getattr(model, "config", None), "_commit_hash", None)
    for config in adapter_configs(model).values():
        known = known or config.revision
    try:
        found = try_to_load_from_cache(name, "config.json", revision=known)
    except HFValidationError:
        return None  # a path that no longer exists
    if not isinstance(found, str):
        return None
    snapshot = Path(found).parent
    return snapshot if known or len(list(snapshot.parent.iterdir())) == 1 else None
