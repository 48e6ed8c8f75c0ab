"""Checks mappings and arguments against msgspec structs, with errors that say what was expected and where.

An error takes its wording of what was expected from the ``description`` of the field's ``Meta``.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Meta

from tracking_callbacks.errors import ConfigError

__all__ = ["check_fields", "fields_of", "struct_from"]

Struct = TypeVar("Struct", bound=msgspec.Struct)


def struct_from(
    kind: type[Struct],
    given: Mapping[Any, Any],
    where: str,
    groups: Mapping[str, type[msgspec.Struct]],
    prefix: str = "",
) -> Struct:
    """Return the struct that `given` describes; a field that is None or absent keeps its default.

    Args:
        kind: The struct's type.
        given: Values by field name.
        where: Where the values come from, such as ``config file run.yaml``, for the error.
        groups: Keys of `given` under which a mapping describes another struct, with that struct's type.
        prefix: Text that the error puts before a key.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or cannot be used.
    """
    fields = {one.name: one.type for one in msgspec.structs.fields(kind)}
    values = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in fields:
            known = ", ".join(sorted(fields))
            read = "" if isinstance(key, str) else f" ({type(key).__name__}; YAML reads on, off, yes and no as such)"
            raise ConfigError(f"{where}: unknown key {name!r}{read}; expected one of: {known}", setting=name)
        if isinstance(value, Mapping) and key in groups:
            values[key] = struct_from(groups[key], value, where, {}, f"{key}.")
        elif value is not None:
            values[key] = _checked(value, fields[key], name, where)
    for one in msgspec.structs.fields(kind):
        if one.required and one.name not in values:
            raise ConfigError(
                f"{where}: {prefix}{one.name} is missing; expected {_expected(one.type)}", setting=f"{prefix}{one.name}"
            )
    try:
        return kind(**values)
    except ConfigError as error:  # its message begins as for a struct that a program builds
        message = str(error).removeprefix(f"{kind.__name__}: ")
        raise ConfigError(f"{where}: {prefix}{message}", setting=f"{prefix}{error.setting}") from error


def fields_of(kind: type[msgspec.Struct]) -> str:
    """Return what an error says was expected where a mapping describes a struct of this type."""
    return f"the fields of {kind.__name__} ({', '.join(kind.__struct_fields__)})"


def check_fields(group: msgspec.Struct, where: str) -> None:
    """Check the fields of a struct that was built directly, and convert their values to the declared types."""
    for one in msgspec.structs.fields(type(group)):
        value = getattr(group, one.name)
        if value is not None:
            msgspec.structs.force_setattr(group, one.name, _checked(value, one.type, one.name, where))


def _checked(value: Any, kind: Any, name: str, where: str) -> Any:
    """Return `value` as a field of type `kind` holds it; paths, mappings and lists may be of any class."""
    if isinstance(value, msgspec.Struct):
        plain: Any = value
    elif isinstance(value, os.PathLike):
        plain = os.fspath(value)
    elif isinstance(value, Mapping):
        plain = dict(value)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        plain = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in value]
    else:
        plain = value
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        expected = _expected(kind)
        hint = "; put it in quotes" if expected.startswith("a text") and isinstance(value, int | float) else ""
        raise ConfigError(
            f"{where}: {name}: expected {expected}, got {value!r} ({type(value).__name__}){hint}", setting=name
        ) from error


def _expected(kind: Any) -> str:
    """Return the description in a field's declaration."""
    for part in typing.get_args(kind):
        if isinstance(part, Meta) and part.description:
            return part.description
    return next(filter(None, map(_expected, typing.get_args(kind))), "")
