"""The journal's record of a model, from what the user says of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tracking_callbacks._journal import records
from tracking_callbacks._values.conversion import entry_text
from tracking_callbacks._values.names import check_logged_model_name, check_registration, safe_name
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks.errors import InputError

__all__ = ["model_record", "promotion_record"]


def model_record(
    name: str,
    registered_model_name: str | None,
    aliases: Iterable[str],
    step: int | None,
    tags: Mapping[str, Any] | None,
    data: Mapping[str, tuple[str, str]],
    *,
    checkpoint: bool = False,
) -> Callable[[str], records.Model]:
    """Return what makes the record of a model from its staged path; see `Run.log_model` for the errors.

    `data` has the name and the digest of the data of evaluations, see `records.Model`.
    """
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
            data={role: used for role, used in data.items() if used[0]},
            checkpoint=checkpoint,
        )

    return record


def promotion_record(
    promotion: Promotion, model: records.Model, data: Mapping[str, tuple[str, str]]
) -> records.Promote:
    """Return the record that compares the version of `model`.

    Args:
        promotion: What is compared.
        model: The record of a model that names a registered model.
        data: Name and digest of the data of evaluations, see `records.Model`.
    """
    assert model.registered_model_name is not None
    assert promotion.greater_is_better is not None
    role = promotion.by.rpartition("/")[0].replace("/", "_")
    used = data.get(role) or (next(iter(data.values())) if len(data) == 1 else None)
    return records.Promote(
        record_key=model.record_key,
        name=model.registered_model_name,
        alias=promotion.alias,
        by=promotion.by,
        greater_is_better=promotion.greater_is_better,
        minimum_gain=promotion.minimum_gain,
        challenger=promotion.challenger,
        step=model.step,
        data=promotion.data or (None if used is None else used[1]),
    )
