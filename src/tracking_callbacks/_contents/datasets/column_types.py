"""Pure: column types in MLflow's terms."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

__all__ = ["ColumnType", "as_mapping", "nested", "type_name", "value_type"]

# MLflow's name of a column's type, or a mapping such as {"type": "array", "items": {"type": "long"}}.
ColumnType = str | dict[str, Any]

_TYPES = {
    "bool": "boolean", "boolean": "boolean",
    "int64": "long", "uint32": "long", "uint64": "long",
    "int8": "integer", "int16": "integer", "int32": "integer", "uint8": "integer", "uint16": "integer",
    "float16": "float", "bfloat16": "float", "float32": "float", "halffloat": "float", "float": "float",
    "float64": "double", "double": "double",
    "string": "string", "large_string": "string", "str": "string",
    "binary": "binary", "large_binary": "binary",
}  # fmt: skip


def type_name(dtype: str) -> str:
    """Return MLflow's name for a type of numpy, torch, Arrow or pandas."""
    dtype = dtype.lower()
    if dtype.startswith(("timestamp", "datetime", "date32", "date64")):
        return "datetime"
    if dtype.startswith("decimal"):
        return "double"
    return _TYPES.get(dtype, "binary" if dtype.startswith(("pil", "dict")) else "string")


def value_type(value: Any) -> ColumnType:
    """Return MLflow's type for a Python value, array or tensor."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return nested(type_name(str(value.dtype).removeprefix("torch.")), len(value.shape))
    for kinds, name in (
        (bool, "boolean"),
        (int, "long"),
        (float, "double"),
        ((bytes, bytearray), "binary"),
        (datetime.date, "datetime"),
    ):
        if isinstance(value, kinds):
            return name
    if isinstance(value, Mapping):
        inner = {str(name): as_mapping(value_type(one)) for name, one in value.items()}
        return {"type": "object", "properties": inner}
    if isinstance(value, (list, tuple)):
        return {"type": "array", "items": as_mapping(value_type(value[0]) if value else "string")}
    return "string"


def nested(name: str, depth: int) -> ColumnType:
    """Return the type of arrays with `depth` dimensions."""
    kind: ColumnType = name
    for _ in range(depth):
        kind = {"type": "array", "items": as_mapping(kind)}
    return kind


def as_mapping(kind: ColumnType) -> dict[str, Any]:
    """Return a type in the form that it takes inside another type."""
    return {"type": kind} if isinstance(kind, str) else kind
