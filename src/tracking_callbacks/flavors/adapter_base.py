"""Loads the base model of an adapter that needs a head, labels, tokens or weights which its base model does not have.

A copy of this file lies next to such a model's configuration, and transformers loads it from there as the code of a
custom model. So it imports nothing of this package, which need not be installed where the model is loaded.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file

__all__ = ["AdapterBase"]

BASE_FILE = "base.json"  # class, name or path, and commit of the base model
WEIGHTS_FILE = "weights.safetensors"  # what neither the base model nor the adapter has
_LOADER = "transformers.modeling_utils"


class AdapterBase:
    """Stands where transformers expects the class of a custom model; `from_pretrained` returns the real one."""

    @classmethod
    def register_for_auto_class(cls, auto_class: object = "AutoModel") -> None:
        """Do nothing: `from_pretrained` returns a model of transformers' own class."""

    @classmethod
    def from_pretrained(cls, folder: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG003 - transformers' signature
        """Return the base model with the configuration and the additional weights in `folder`.

        Args:
            folder: The folder of this file.
            args: Not used.
            kwargs: Passed on to ``from_pretrained`` of the base model's class.
        """
        place = Path(folder)
        base = json.loads((place / BASE_FILE).read_text(encoding="utf-8"))
        known = ("config", "revision", "code_revision", "trust_remote_code", "adapter_kwargs", "subfolder")
        options = {name: value for name, value in kwargs.items() if name not in known}
        config = transformers.AutoConfig.from_pretrained(folder)
        config.architectures = [base["class"]]
        config.auto_map = {}
        logger = logging.getLogger(_LOADER)
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns that the head is new, which the adapter or the weights here replace
        try:
            model = getattr(transformers, base["class"]).from_pretrained(
                base["name_or_path"],
                config=config,
                revision=base["revision"] or "main",
                ignore_mismatched_sizes=True,
                **options,
            )
        finally:
            logger.setLevel(level)
        if (place / WEIGHTS_FILE).is_file():
            model.load_state_dict(load_file(place / WEIGHTS_FILE), strict=False)
        return model
