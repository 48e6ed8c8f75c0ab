"""A ``Trainer``'s configuration, as flat params for comparing runs and as whole documents for reproducing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from tracking_callbacks._callbacks.description import Description, telling_first
from tracking_callbacks._values.conversion import flatten, to_jsonable
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.huggingface.adapters import adapter_configs
from tracking_callbacks.huggingface.base_model import base_model_of, hub_snapshot_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

__all__ = ["config_of", "describe", "describe_search"]

# Mappings by label or module name: one param each, because their keys differ from model to model.
_ONE_PARAM = frozenset({"id2label", "rank_pattern", "alpha_pattern"})
_MIRROR_OF_ANOTHER = frozenset({"label2id"})


# What tells two training runs apart first, see `telling_first`.
_TELLING = (
    *("base_model", "base_model_revision", "total_parameters", "trainable_parameters", "trainable_percent"),
    *("trainable_ratio", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("num_train_epochs", "max_steps", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules"),
    *("lora.use_rslora", "lora.use_dora", "weight_decay", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "optim"),
    *("max_grad_norm", "label_smoothing_factor", "seed", "bf16", "fp16", "model.model_type", "model.hidden_size"),
    *("model.num_hidden_layers", "model.num_attention_heads", "model.vocab_size", "per_device_eval_batch_size"),
)


def describe(args: TrainingArguments, model: nn.Module) -> Description:
    """Return the arguments, model configuration and PEFT configuration of a training run, with secrets masked.

    Training arguments keep their names. Names from the model configuration get the prefix ``model.``, those from a PEFT
    configuration its type (``lora.r``), followed by the adapter's name if there are several (``lora.default.r``).
    """
    params: dict[str, Any] = {}
    documents: dict[str, Any] = {}
    telling = list(_TELLING)
    # A piece that a setup does not have, or that raises, costs that piece alone.
    for piece in (_arguments, _model_config, _adapters):
        found = piece(args, model)
        if found is not None:
            params |= found.params
            documents |= found.documents
    telling += [name for name, value in _adapter_params(documents).items() if value]
    telling += _changed(args) or ()
    params |= (_base_model(model) or {}) | (_sizes(model) or {})
    return Description(params=telling_first(params, telling), documents=documents)


@never_in_the_way
def _arguments(args: TrainingArguments, _: nn.Module) -> Description:
    arguments = to_jsonable(_as_mapping(args))
    size = getattr(args, "world_size", None)
    return Description(
        _flat(arguments) | ({} if size is None else {"world_size": size}), {"training_args.json": arguments}
    )


@never_in_the_way
def _model_config(_: TrainingArguments, model: nn.Module) -> Description | None:
    config = to_jsonable(_as_mapping(config_of(model)))
    return Description(_flat(config, "model."), {"model_config.json": config}) if config else None


@never_in_the_way
def _adapters(_: TrainingArguments, model: nn.Module) -> Description | None:
    adapters = {name: to_jsonable(config.to_dict()) for name, config in adapter_configs(model).items()}
    documents = {"peft_config.json": adapters} if adapters else {}
    return Description(_adapter_params(documents), documents)


def _adapter_params(documents: Mapping[str, Any]) -> dict[str, Any]:
    adapters = documents.get("peft_config.json", {})
    params: dict[str, Any] = {}
    for adapter, config in adapters.items():
        peft_type = str(config["peft_type"]).lower()
        params |= _flat(config, f"{peft_type}." if len(adapters) == 1 else f"{peft_type}.{adapter}.")
    return params


@never_in_the_way
def _changed(args: TrainingArguments) -> list[str]:
    """Return the names of the arguments that differ from their defaults."""
    fields = (field for field in dataclasses.fields(args) if field.init)
    return [field.name for field in fields if getattr(args, field.name) != field.default]


@never_in_the_way
def config_of(model: Any) -> Any:
    """Return the configuration of a model, None if it has none or reading it raises."""
    return getattr(model, "config", None)


def describe_search(args: TrainingArguments, varied: Container[str]) -> Description:
    """Return the training arguments that all trials of a search have in common, with secrets masked.

    Args:
        args: The training arguments of any one trial.
        varied: Names of the arguments that differ from trial to trial.
    """
    arguments = {key: value for key, value in to_jsonable(_as_mapping(args)).items() if key not in varied}
    return Description(
        params=telling_first(_flat(arguments) | {"world_size": args.world_size}, _TELLING),
        documents={"training_args.json": arguments},
    )


@never_in_the_way
def _base_model(model: nn.Module) -> dict[str, Any]:
    snapshot = hub_snapshot_of(model)
    known = {"base_model": base_model_of(model), "base_model_revision": snapshot.name if snapshot else None}
    return {key: value for key, value in known.items() if value is not None}


@never_in_the_way
def _sizes(model: nn.Module) -> dict[str, Any]:
    # PEFT's count handles packed 4-bit weights and weights that DeepSpeed has sharded over processes.
    count = getattr(model, "get_nb_trainable_parameters", None)
    if count is not None:
        trainable, total = count()
    elif not callable(getattr(model, "parameters", None)):  # setfit's model is no module
        return {}
    else:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_ratio": round(trainable / total, 6) if total else 0.0,
        "trainable_percent": round(100 * trainable / total, 4) if total else 0.0,
    }


def _as_mapping(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    return config.to_dict() if hasattr(config, "to_dict") else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    unfolded = {key: value for key, value in config.items() if key not in _ONE_PARAM | _MIRROR_OF_ANOTHER}
    whole = {key: str(value) for key, value in config.items() if key in _ONE_PARAM}
    return {f"{prefix}{key}": value for key, value in (flatten(unfolded) | whole).items()}
