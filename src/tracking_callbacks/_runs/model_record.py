"""The journal's record of a model, from what the user says of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tracking_callbacks._journal import records
from tracking_callbacks._values.conversion import entry_text
from tracking_callbacks._values.names import check_logged_model_name, check_registration, safe_name
from tracking_callbacks.errors import InputError

__all__ = ["model_record"]


def model_record(
    name: str,
    registered_model_name: str | None,
    aliases: Iterable[str],
    step: int | None,
    tags: Mapping[str, Any] | None,
) -> Callable[[str], records.Model]:
    """Return what makes the record of a model from its staged path; see `Run.log_model` for the errors."""
    aliases = tuple(aliases)
    if aliases and registered_model_name is None:
        raise InputError(f"log_model: aliases {aliases!r} need a registered_model_name")
    checked = check_registration(registered_model_name, aliases)
    check_logged_model_name(name, "name")
    texts = {safe_name(key): entry_text(key, value) for key, value in (tags or {}).items()}

    def record(staged: str) -> records.Model:
        return records.Model(
            timestamp=records.now_ms(),
            record_key=uuid.uuid4().hex,
            staged=staged,
            name=name,
            registered_model_name=registered_model_name,
            aliases=checked,
            step=step,
            tags=texts,
        )

    return record
