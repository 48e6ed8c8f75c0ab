"""Describes datasets in the form that MLflow stores for the inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracking_callbacks._contents.datasets.summary import DatasetSummary, summarize
from tracking_callbacks._contents.entry_point import origin_tags
from tracking_callbacks._journal.records import Dataset
from tracking_callbacks._values.conversion import cut_text, to_jsonable
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks.errors import InputError, InvalidNameError

__all__ = ["describe_dataset"]

# mlflow.utils.validation
_MAX_NAME_LENGTH = 500
_MAX_DIGEST_LENGTH = 36
_MAX_SCHEMA_LENGTH = 1_000_000


def describe_dataset(
    name: str,
    *,
    dataset: object = None,
    digest: str | None = None,
    schema: Mapping[str, Any] | None = None,
    size: int | Mapping[str, int] | None = None,
    source: str = "",
    source_type: str | None = None,
    context: str | None = None,
) -> Dataset:
    """Return the record of a dataset input; see `Run.log_dataset` for the arguments and errors.

    Args:
        name: Name of the dataset.
        dataset: The dataset itself or its `DatasetSummary`; the other arguments take precedence over what it contains.
        digest: Fingerprint of the dataset's content.
        schema: Names and types of its columns.
        size: Number of rows, or counts by name.
        source: Where the dataset comes from.
        source_type: MLflow's name for the kind of source.
        context: What the run uses the dataset for.
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidNameError(f"dataset name: expected a non-empty string, got {name!r}", name=name)
    found = DatasetSummary() if dataset is None else summarize(dataset)
    name = cut_text(mask_text(name), _MAX_NAME_LENGTH)
    profile = to_jsonable({"num_rows": size} if isinstance(size, int) else size or found.size)
    columns = dict(found.columns) if schema is None else to_jsonable(schema)
    spec = json.dumps(_colspec(columns)) if columns else None
    location = mask_text(source)
    digest = digest or found.digest
    if digest is None:
        import hashlib

        fingerprint = json.dumps([name, columns, profile, location])
        digest = hashlib.blake2b(fingerprint.encode(), digest_size=4).hexdigest()
    if len(digest) > _MAX_DIGEST_LENGTH:
        raise InputError(f"dataset digest: expected at most {_MAX_DIGEST_LENGTH} characters, got {len(digest)}")
    origin: Mapping[str, Any]
    if location:
        origin, kind = {"uri": location}, source_type or "code"
    elif found.source is not None:
        origin, kind = to_jsonable(found.source), source_type or found.source_type
    else:  # as MLflow describes a dataset that the program generates
        origin, kind = {"tags": origin_tags()}, source_type or "code"
    return Dataset(
        name=name,
        digest=digest,
        source_type=kind,
        source=json.dumps(origin),
        schema=spec if spec is None or len(spec) <= _MAX_SCHEMA_LENGTH else None,
        profile=json.dumps(profile) if profile else None,
        context=context,
    )


def _colspec(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return `columns` in the form of MLflow's ``Schema.to_dict``, which MLflow's UI shows as a table."""
    return {
        "mlflow_colspec": [
            (dict(kind) if isinstance(kind, Mapping) else {"type": kind}) | {"name": name, "required": True}
            for name, kind in columns.items()
        ]
    }
