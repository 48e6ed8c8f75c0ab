"""Descriptions of datasets as MLflow keeps them for the inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracking_callbacks.errors import InputError, InvalidNameError
from tracking_callbacks.masking import mask_text
from tracking_callbacks.records import Dataset
from tracking_callbacks.values import plain

__all__ = ["describe_dataset"]

_MAX_DIGEST_LENGTH = 36  # mlflow.utils.validation.MAX_DATASET_DIGEST_SIZE


def describe_dataset(
    name: str,
    *,
    digest: str | None = None,
    schema: Mapping[str, Any] | None = None,
    size: int | Mapping[str, int] | None = None,
    source: str = "",
    source_type: str = "code",
    context: str | None = None,
) -> Dataset:
    """Return the record of a dataset input; see `Run.log_dataset` for the arguments and errors."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidNameError(f"dataset name: expected a text that is not empty, got {name!r}", name=name)
    profile = plain({"num_rows": size} if isinstance(size, int) else size)
    columns = plain(schema)
    name, location = mask_text(name), mask_text(source)
    if digest is None:
        import hashlib

        fingerprint = json.dumps([name, columns, profile, location])
        digest = hashlib.blake2b(fingerprint.encode(), digest_size=4).hexdigest()
    if len(digest) > _MAX_DIGEST_LENGTH:
        raise InputError(f"dataset digest: expected at most {_MAX_DIGEST_LENGTH} characters, got {len(digest)}")
    return Dataset(
        name=name,
        digest=digest,
        source_type=source_type,
        source=json.dumps({"uri": location}),
        schema=json.dumps(columns) if columns else None,
        profile=json.dumps(profile) if profile else None,
        context=context,
    )
