"""Which of transformers' pipelines runs a model."""

from __future__ import annotations

from typing import Any

from tracking_callbacks.huggingface.adapters import is_peft_model

__all__ = ["NO_TASK", "TEXT2TEXT", "task_of"]

# Removed in transformers 5, but still the name of the task of T5 and similar models.
TEXT2TEXT = "text2text-generation"
# The pipeline of any model, which stands in where there is no other.
NO_TASK = "feature-extraction"


def task_of(model: Any) -> str | None:
    """Return the task of the pipeline that runs `model`, by its class; None if transformers has none.

    Its class may be one of transformers, one that was registered (``AutoModelForTokenClassification.register``), or one
    whose configuration names its auto class (``register_for_auto_class``, ``trust_remote_code``).
    """
    # Undocumented (transformers 5.23.0), as is `_model_mapping`: no public function gives the task of a model's class.
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    from transformers.pipelines import PIPELINE_REGISTRY

    base = model.get_base_model() if is_peft_model(model) else model
    name = type(base).__name__
    for task, entry in PIPELINE_REGISTRY.supported_tasks.items():
        if any(name in _names_of(auto_class, base.config) for auto_class in entry["pt"]):
            return str(task)
    return TEXT2TEXT if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values() else None


def _names_of(auto_class: Any, config: Any) -> set[str]:
    """Return the names of the classes that `auto_class` loads for a configuration."""
    mapping = auto_class._model_mapping
    known = mapping._model_mapping.get(config.model_type, ())
    registered = mapping._extra_content.get(type(config), ())
    classes = registered if isinstance(registered, (tuple, list)) else (registered,)
    names = {*(known if isinstance(known, (tuple, list)) else (known,)), *(cls.__name__ for cls in classes)}
    own = (getattr(config, "auto_map", None) or {}).get(auto_class.__name__)
    return names if own is None else names | {own.rpartition(".")[2]}
