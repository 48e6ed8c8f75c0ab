"""Pure functions from what frameworks hand out to what MLflow can hold: scalars, names, texts, no secrets."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import PurePosixPath
from typing import Any

from tracking_callbacks.errors import ConfigError, InputError, InvalidNameError, MetricValueError
from tracking_callbacks.masking import MASK, is_secret, mask_text, names_secret_number

__all__ = [
    "MAX_KEY_LENGTH",
    "MAX_PARAM_LENGTH",
    "MAX_TAG_LENGTH",
    "artifact_place",
    "check_aliases",
    "check_model_name",
    "cut_text",
    "distinct_name",
    "entry_text",
    "flatten",
    "hidden",
    "param_text",
    "plain",
    "safe_name",
    "to_scalar",
    "whole_step",
]

# Limits of MLflow's tracking store (mlflow.utils.validation, 3.17).
MAX_KEY_LENGTH = 250
MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 8_000
MAX_ALIAS_LENGTH = 255

_NOT_ALLOWED = re.compile(r"[^\w\-. /:]")
_ALIAS = re.compile(r"[\w\-]+")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
_MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def to_scalar(key: str, value: object) -> float:
    """Return `value` as one float.

    Args:
        key: The metric's name, for the error message.
        value: A Python number, or anything with one element and ``item()`` (numpy scalar or array, torch tensor).

    Raises:
        MetricValueError: `value` is not a number, or holds several.
    """
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    size = getattr(value, "size", None)
    count = getattr(value, "numel", None) or size
    count = count() if callable(count) else count
    if isinstance(count, int) and count != 1:
        shape = tuple(getattr(value, "shape", ()))
        raise MetricValueError(f"metric {key!r}: expected one number, got {count} of them, shape {shape}", key=key)
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, (int, float)):
        return float(number)
    if not isinstance(number, (str, bytes, complex)) and hasattr(number, "__float__"):
        return float(number)
    shown = repr(value) if isinstance(value, (str, bytes)) else type(value).__name__
    raise MetricValueError(f"metric {key!r}: expected one number, got {shown}", key=key)


def whole_step(step: object) -> int:
    """Return `step` as a signed 64-bit integer, the store's column type; None stands for 0, as in MLflow.

    Raises:
        InputError: It is no whole number (numpy's integers are), or too large.
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


def artifact_place(path: str, setting: str) -> PurePosixPath:
    """Return `path`, a place among a run's artifacts.

    Raises:
        InputError: It is absolute or leads out of the run's artifacts.
    """
    place = PurePosixPath(str(path).replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:
        raise InputError(f"{setting}: expected a path inside the run's artifacts, got {str(path)!r}")
    return place


def cut_text(text: str, length: int) -> str:
    """Return `text`, or its first `length` - 1 characters and an ellipsis if it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "…"


def safe_name(name: str) -> str:
    """Return `name` as MLflow accepts it for metrics, params and tags; most names come back unchanged.

    MLflow allows letters, digits, ``_ - . / :`` and space, at most 250 characters, and no name that a path
    normalisation would change (``a//b``, ``/a``, ``a/..``). Everything else becomes ``_``; a name that was cut ends
    in eight hexadecimal digits of its own digest, so that two long names with a common beginning stay apart.

    Raises:
        InvalidNameError: `name` is not a text, or is empty.
    """
    if not isinstance(name, str):
        raise InvalidNameError(f"expected a name of type str, got {name!r} ({type(name).__name__})", name=name)
    if not name.strip():
        raise InvalidNameError(f"expected a name with at least one character that shows, got {name!r}", name=name)
    safe = _NOT_ALLOWED.sub("_", name)
    if "/" in safe or safe in (".", ".."):
        safe = "/".join(part if part.strip(".") else "_" * max(1, len(part)) for part in safe.split("/"))
    if len(safe) > MAX_KEY_LENGTH:
        safe = distinct_name(safe, name)
    return safe


def distinct_name(safe: str, original: str) -> str:
    """Return `safe` made unmistakable by a digest of `original`, within MLflow's length limit."""
    import hashlib  # few names need it, and it loads OpenSSL

    digest = hashlib.blake2b(original.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{safe[: MAX_KEY_LENGTH - 9]}_{digest}"


def check_aliases(aliases: Iterable[str]) -> tuple[str, ...]:
    """Return `aliases` as a tuple.

    Raises:
        ConfigError: An alias holds something else than letters, digits, ``_`` and ``-``, is longer than 255
            characters, or is one that MLflow reserves (``latest``, ``v1``, ``v2``, …).
    """
    if isinstance(aliases, str):
        raise ConfigError(f"aliases: expected a sequence of names, got the text {aliases!r}", setting="aliases")
    checked = tuple(aliases)
    for alias in checked:
        if not isinstance(alias, str) or not _ALIAS.fullmatch(alias) or len(alias) > MAX_ALIAS_LENGTH:
            raise ConfigError(
                f"aliases: {alias!r} is not a model alias; expected letters, digits, '_' and '-' "
                f"(1 to {MAX_ALIAS_LENGTH} characters)",
                setting="aliases",
            )
        if _RESERVED_ALIAS.fullmatch(alias):
            raise ConfigError(f"aliases: {alias!r} is reserved by MLflow ('latest' and 'v<number>')", setting="aliases")
    return checked


def check_model_name(name: str, setting: str) -> str:
    """Return `name`, a logged or registered model's name, as it is.

    Raises:
        ConfigError: It is empty or holds ``/``, ``:`` or another character that MLflow keeps for model URIs.
    """
    if not isinstance(name, str) or not name.strip() or any(character in name for character in "/:.%\"'"):
        raise ConfigError(f"{setting}: expected a name without / : . % and quotes, got {name!r}", setting=setting)
    return name


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


def plain(value: object) -> Any:
    """Return `value` as JSON can hold it, the same for equal inputs, with secrets masked.

    Sets are sorted, enums give their values, dataclasses and mappings become dicts, paths and dates become text,
    classes and functions their dotted names. What has no such form becomes its ``str``, and its class's dotted name
    where that text would be the default one with a memory address. Values under a key that names a secret
    (``hub_token``, ``password``, …) and credentials inside URIs are replaced by ``***``.
    """
    return _plain(value, set())


def _plain(value: Any, ancestors: set[int]) -> Any:
    kind = type(value)  # nearly all of a configuration is told by it; abstract classes take a microsecond each
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        return mask_text(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value, ancestors)
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
        return sorted((_plain(inner, ancestors) for inner in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(inner, ancestors) for inner in value]
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return _plain(value.item(), ancestors)
    if callable(getattr(value, "tolist", None)) and hasattr(value, "shape"):
        return _plain(value.tolist(), ancestors)
    text = str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if _MEMORY_ADDRESS.search(text) else mask_text(text)


def _masked(key: str, value: Any, ancestors: set[int]) -> Any:
    return MASK if hidden(key, value) else _plain(value, ancestors)


def hidden(key: str, value: object) -> bool:
    """Return whether `value` under `key` is a secret; nothing, a flag, and mostly a number show none."""
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
    """Return `value` as the text of an MLflow param: JSON-like for containers, ``str`` for the rest."""
    return (
        mask_text(value) if isinstance(value, str) else str(value if isinstance(value, (int, float)) else plain(value))
    )


def entry_text(key: str, value: object) -> str:
    """Return `value` as the text of the param or tag `key`, ``***`` where the key names a secret."""
    return MASK if hidden(key, value) else param_text(value)
