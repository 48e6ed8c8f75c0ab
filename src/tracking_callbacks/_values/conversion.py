"""Pure functions from what frameworks hand out to what MLflow can hold: scalars, steps, texts without secrets."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import hashlib
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from tracking_callbacks._values.secrets import MASK, is_secret, mask_text, names_secret_number
from tracking_callbacks.errors import InputError, MetricValueError

__all__ = [
    "MAX_PARAM_LENGTH",
    "MAX_TAG_LENGTH",
    "cut_text",
    "entry_text",
    "flatten",
    "param_text",
    "should_mask",
    "to_jsonable",
    "to_scalar",
    "to_step",
]

# Limits of MLflow's tracking store (mlflow.utils.validation, 3.17).
MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 8_000

# What the libraries raise where there is no number, or several: torch's RuntimeError comes from a meta tensor.
_NOT_ONE_NUMBER = (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
_MOST_ELEMENTS = 256  # of an array that is written out
_MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def to_scalar(key: str, value: object) -> float:
    """Return `value` as a float.

    Args:
        key: The metric's name, for the error message.
        value: A number, or whatever ``item()`` or ``float()`` makes one number of: a numpy scalar, an array or tensor
            of one element, a fraction, a decimal. A text is none.

    Raises:
        MetricValueError: `value` is not a number, or holds several numbers.
    """
    if isinstance(value, float):
        return float(value)
    number = _only_number_in(value)
    if number is not None:
        return number
    size = getattr(value, "size", None)
    count = getattr(value, "numel", None) or size
    count = count() if callable(count) else count
    if isinstance(count, int) and count != 1:
        shape = tuple(getattr(value, "shape", ()))
        raise MetricValueError(f"metric {key!r}: expected one number, got {count} of them, shape {shape}", key=key)
    shown = repr(value) if isinstance(value, (str, bytes)) else type(value).__name__
    raise MetricValueError(f"metric {key!r}: expected one number, got {shown}", key=key)


def _only_number_in(value: Any) -> float | None:
    item = getattr(value, "item", None)
    try:
        number = item() if callable(item) else value
    except _NOT_ONE_NUMBER:  # several elements, or a method that is something else
        number = value
    if isinstance(number, (str, bytes, bytearray)):  # `float` would read a number out of a text
        return None
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    except _NOT_ONE_NUMBER:
        return None


def to_step(step: object) -> int:
    """Return `step` as a signed 64-bit integer, the store's column type; None means 0, as in MLflow.

    Raises:
        InputError: `step` is not a whole number (numpy integers are accepted), or is too large.
    """
    if step is None:
        return 0
    try:
        number = step if type(step) is int else operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"step: expected a whole number, got {step!r} ({type(step).__name__})") from None
    if not -(2**63) <= number < 2**63:
        raise InputError(f"step: expected a signed 64-bit integer, got {number}")
    return number


def cut_text(text: str, length: int) -> str:
    """Return `text`, or its first `length - 1` characters and an ellipsis if it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "…"


def flatten(mapping: Mapping[str, Any], sep: str = ".") -> dict[str, Any]:
    """Return `mapping` with nested mappings unfolded: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    An empty nested mapping stays as the value ``{}``, so that its key is not lost.
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}{sep}{inner}": leaf for inner, leaf in flatten(value, sep).items()})
        else:
            flat[str(key)] = value
    return flat


def to_jsonable(value: object) -> Any:
    """Return `value` in a form that JSON can hold, the same for equal inputs, with secrets masked.

    Sets are sorted, enums give their values, dataclasses and mappings become dicts, paths and dates become text,
    classes and functions their dotted names. Any other object becomes its ``str``, or its class's dotted name if that
    text contains a memory address. An array or tensor of more than 256 elements becomes its shape, its dtype and a
    digest of its bytes (BLAKE2b, 64 bits). Values under a key that names a secret (``hub_token``, ``password``, …) and
    credentials inside URIs are replaced by ``***``.
    """
    return _to_jsonable(value, set())


def _to_jsonable(value: Any, ancestors: set[int]) -> Any:
    kind = type(value)  # enough for most of a configuration; checks of abstract classes take a microsecond each
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        return mask_text(value)
    if isinstance(value, enum.Enum):
        return _to_jsonable(value.value, ancestors)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # strict JSON has no NaN
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, (os.PathLike, datetime.date, datetime.time)):
        return str(value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if id(value) in ancestors:
        return f"<{type(value).__name__}: contains itself>"
    ancestors = ancestors | {id(value)}
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _masked(str(key), inner, ancestors) for key, inner in value.items()}
    if isinstance(value, Set):
        return sorted((_to_jsonable(inner, ancestors) for inner in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_to_jsonable(inner, ancestors) for inner in value]
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return _to_jsonable(value.item(), ancestors)
    if callable(getattr(value, "tolist", None)) and hasattr(value, "shape"):
        if math.prod(value.shape) > _MOST_ELEMENTS:
            return _summary(value)
        return _to_jsonable(value.tolist(), ancestors)
    text = str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if _MEMORY_ADDRESS.search(text) else mask_text(text)


def _summary(array: Any) -> dict[str, Any]:
    """Return what an array or tensor with very many elements is known by."""
    summary = {"shape": [int(length) for length in array.shape], "dtype": str(array.dtype)}
    with contextlib.suppress(*_NOT_ONE_NUMBER):  # a tensor without content, or of a type that numpy does not know
        array = array.detach().cpu() if hasattr(array, "detach") else array
        content = _content(array)
        if not content.dtype.hasobject:  # of objects, the bytes are addresses
            contiguous = content if content.flags.c_contiguous else content.copy(order="C")
            digest = hashlib.blake2b(contiguous.view("uint8").reshape(-1), digest_size=8)
            summary["digest"] = digest.hexdigest()
    return summary


def _content(array: Any) -> Any:
    if not callable(getattr(array, "numpy", None)):
        return array.__array__()
    try:
        return array.numpy()
    except TypeError:  # numpy has no bfloat16
        return array.float().numpy()


def _masked(key: str, value: Any, ancestors: set[int]) -> Any:
    return MASK if should_mask(key, value) else _to_jsonable(value, ancestors)


def should_mask(key: str, value: object) -> bool:
    """Return whether `value` under `key` is a secret; None and booleans never are, and numbers rarely."""
    if isinstance(value, (str, bytes)):
        return bool(value) and is_secret(key)
    if value is None or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return names_secret_number(key)
    if isinstance(value, Mapping):
        return bool(value) and names_secret_number(key)
    return isinstance(value, (Sequence, Set)) and is_secret(key) and any(isinstance(one, (str, bytes)) for one in value)


def param_text(value: object) -> str:
    """Return `value` as the text of an MLflow param: JSON-like for containers, ``str`` for everything else."""
    return (
        mask_text(value)
        if isinstance(value, str)
        else str(value if isinstance(value, (int, float)) else to_jsonable(value))
    )


def entry_text(key: str, value: object) -> str:
    """Return `value` as the text of the param or tag `key`, or ``***`` if it is a secret."""
    return MASK if should_mask(key, value) else param_text(value)
