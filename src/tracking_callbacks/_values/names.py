"""Names that MLflow accepts: for metrics, params and tags, for models and their aliases, and for artifact paths."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from tracking_callbacks.errors import ConfigError, InputError, InvalidNameError

__all__ = [
    "MAX_KEY_LENGTH",
    "SafeNames",
    "artifact_place",
    "check_aliases",
    "check_logged_model_name",
    "check_registered_model_name",
    "check_registration",
    "distinct_name",
    "safe_name",
]

# Limits of mlflow.utils.validation, 3.17.
MAX_KEY_LENGTH = 250
MAX_ALIAS_LENGTH = 255
_NOT_ALLOWED = re.compile(r"[^\w\-. /:]")
_ALIAS = re.compile(r"[\w\-]+")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Return `name` in a form that MLflow accepts for metrics, params and tags; most names come back unchanged.

    MLflow allows letters, digits, ``_ - . / :`` and space, at most 250 characters, and no name that path normalisation
    would change (``a//b``, ``/a``, ``a/..``). Everything else becomes ``_``. A name that had to be cut ends in eight
    hexadecimal digits of its digest, so that two long names with a common beginning stay distinct.

    Raises:
        InvalidNameError: `name` is not a string, or is empty.
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
    """Return `safe` made unique by a digest of `original`, within MLflow's length limit."""
    import hashlib  # imported late: few names need it, and it loads OpenSSL

    digest = hashlib.blake2b(original.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{safe[: MAX_KEY_LENGTH - 9]}_{digest}"


def artifact_place(path: str, setting: str) -> PurePosixPath:
    """Return `path` as a path relative to the run's artifacts; `setting` names it in the error.

    Raises:
        InputError: It is absolute, leads out of the run's artifacts, or holds a NUL character.
    """
    place = PurePosixPath(str(path).replace("\\", "/"))
    if place.is_absolute() or PureWindowsPath(place).drive or ".." in place.parts or "\0" in str(place):
        raise InputError(f"{setting}: expected a path inside the run's artifacts, got {str(path)!r}")
    return place


def check_aliases(aliases: Iterable[str], setting: str = "aliases") -> tuple[str, ...]:
    """Return `aliases` as a tuple.

    Args:
        aliases: Names of aliases.
        setting: What they were given as, for the error.

    Raises:
        ConfigError: An alias holds anything but letters, digits, ``_`` and ``-``, is longer than 255 characters, or is
            one that MLflow reserves (``latest``, ``v1``, ``v2``, …).
    """
    if isinstance(aliases, str):
        raise ConfigError(f"aliases: expected a sequence of names, got the text {aliases!r}", setting="aliases")
    checked = tuple(aliases)
    for alias in checked:
        if not isinstance(alias, str) or not _ALIAS.fullmatch(alias) or len(alias) > MAX_ALIAS_LENGTH:
            raise ConfigError(
                f"{setting}: {alias!r} is not a model alias; expected letters, digits, '_' and '-' "
                f"(1 to {MAX_ALIAS_LENGTH} characters)",
                setting=setting,
            )
        if _RESERVED_ALIAS.fullmatch(alias):
            raise ConfigError(f"{setting}: {alias!r} is reserved by MLflow ('latest' and 'v<number>')", setting=setting)
    return checked


def check_registered_model_name(name: str, setting: str) -> str:
    """Return `name`, the name of a registered model, unchanged.

    The rule is that of ``mlflow.utils.validation._validate_model_name`` (3.17), which a test compares it with. Dots are
    allowed: ``llama-3.1-8b``, and ``catalog.schema.model`` in Unity Catalog.

    Raises:
        ConfigError: It is empty, holds ``/`` or ``:``, or begins with two dots.
    """
    if not isinstance(name, str) or not name.strip() or any(character in name for character in "/:"):
        raise ConfigError(f"{setting}: expected a name without / and :, got {name!r}", setting=setting)
    if posixpath.normpath(name) != name or name == "." or name.startswith(".."):
        raise ConfigError(f"{setting}: expected a name that does not read as a path, got {name!r}", setting=setting)
    return name


def check_logged_model_name(name: str, setting: str) -> str:
    """Return `name`, the name of a logged model, unchanged.

    Raises:
        ConfigError: It is empty, or holds ``/``, ``:`` or another character that MLflow reserves for model URIs.
    """
    if not isinstance(name, str) or not name.strip() or any(character in name for character in "/:.%\"'"):
        raise ConfigError(f"{setting}: expected a name without / : . % and quotes, got {name!r}", setting=setting)
    return name


def check_registration(registered_model_name: str | None, aliases: Iterable[str]) -> tuple[str, ...]:
    """Return `aliases` as a tuple, if a model can be registered under this name with them.

    Raises:
        ConfigError: The name or an alias is one that MLflow forbids, or there are aliases without a name.
    """
    checked = check_aliases(aliases)
    if registered_model_name is not None:
        check_registered_model_name(registered_model_name, "registered_model_name")
    elif checked:
        raise ConfigError(f"aliases: {checked!r} need a registered_model_name", setting="aliases")
    return checked


class SafeNames:
    """Names of one kind: metrics, params or tags.

    Attributes:
        safe: The safe form of each name seen so far. Look here first, and `add` a name that is missing.
    """

    def __init__(self) -> None:
        self.safe: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def add(self, name: str) -> str:
        """Return the safe form of `name`, which no other name shares.

        Raises:
            InvalidNameError: `name` is empty or not a string.
        """
        safe = safe_name(name)
        if self._given.setdefault(safe, name) != name:
            safe = distinct_name(safe, name)
            self._given[safe] = name
        self.safe[name] = safe
        return safe
