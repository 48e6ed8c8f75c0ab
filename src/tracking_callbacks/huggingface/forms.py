"""Decides in which form a model with PEFT adapters is saved: the adapter alone, merged into its base, or as it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks.errors import ConfigError, TrackingError
from tracking_callbacks.huggingface.adapters import (
    active_adapters,
    has_adapters,
    is_mergeable,
    is_peft_model,
    is_quantised,
    peft_type,
)
from tracking_callbacks.huggingface.base_model import base_model_of, hub_snapshot_of
from tracking_callbacks.huggingface.base_weights import weights_beyond

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CHOICES", "ModelForm", "SavedForm", "check_choice", "choose_form"]

CHOICES = ("auto", "adapter", "merged", "full")


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
        own_head: The adapter needs a head, labels, tokens or weights that its base model does not have.
    """

    form: ModelForm
    base: Path | None = None
    revision: str | None = None
    notice: str = ""
    own_head: bool = False


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
    notices = [f"loads only where the path {base} exists"] if snapshot is None else []
    if is_quantised(model):
        notices.append("loads on a base that is not quantised, so its predictions differ slightly")
    remedy = "; log_model='merged' has no such limit" if is_mergeable(model) else ""
    return SavedForm(
        ModelForm.ADAPTER,
        base=base,
        revision=snapshot.name if snapshot else None,
        notice=f"the adapter {' and '.join(notices)}{remedy}" if notices else "",
        own_head=bool(lost),
    )


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
    lost = [field for field, different in differs.items() if different]
    return [*lost, "newly initialised weights"] if not lost and weights_beyond(model, base) else lost
