"""Sends a batch of which the store may refuse some entries: the rest arrives, and the refused ones are returned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from tracking_callbacks._delivery.batches import Batch
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.stores.store import Store

__all__ = ["SURPLUS_PARAMS", "add_refused", "count_refused", "send_batch"]

_DRIFT_TAG_PREFIX = "param_drift."
_MAX_KEY = 250

SURPLUS_PARAMS = "params"  # the kind of an entry for all params above the store's limit
# Azure: "A field of the entity is over the size limit. FieldName=Parameters, Limit=200, Size=207."
_TOO_MANY_PARAMS = re.compile(
    r"FieldName=Parameters\b|RESOURCE_LIMIT_EXCEEDED|(number of|too many) (\w+ )?param", re.IGNORECASE
)


def send_batch(store: Store, run_id: str, batch: Batch) -> list[dict[str, Any]]:
    """Send `batch`; if the store refuses it, halve it until each entry is either delivered or known to be wrong.

    Returns:
        One mapping per refused entry: what it was, and the store's reason. All params above a limit of the store
        are one mapping.

    Raises:
        Blocked: The run itself cannot be written to, for example because it was deleted.
        DeliveryError: The store did not accept the batch this time. Sending the whole batch again is harmless.
    """
    if not len(batch):
        return []
    try:
        store.log_batch(run_id, batch)
    except Refused as error:
        logged = store.check_active(run_id).params
        drifted = {name: text for name, text in batch.params.items() if logged.get(name, text) != text}
        if drifted:
            # Params are immutable in MLflow: the first value stays, and a tag shows what the later session had.
            tags = {f"{_DRIFT_TAG_PREFIX}{name}"[:_MAX_KEY]: text for name, text in drifted.items()}
            send_batch(store, run_id, Batch(tags=tags))
            params = {name: text for name, text in batch.params.items() if name not in drifted}
            return send_batch(store, run_id, Batch(metrics=batch.metrics, params=params, tags=batch.tags))
        if len(batch) == len(batch.params) and _TOO_MANY_PARAMS.search(str(error)):
            return _fill(store, run_id, batch, str(error))
        if len(batch) > 1:
            return [entry for half in _halves(batch) for entry in send_batch(store, run_id, half)]
        return [_entry(batch, str(error))]
    return []


def count_refused(entries: Iterable[dict[str, Any]]) -> int:
    """Return how many of the user's entries `send_batch` has returned."""
    return sum(len(entry["params"]) if entry["record"] == SURPLUS_PARAMS else 1 for entry in entries)


def add_refused(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to the list of refused entries; all params above the store's limit share one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if entry["record"] == SURPLUS_PARAMS:
        for number, line in enumerate(lines):
            if (before := _surplus_in(line)) is not None:
                del lines[number]
                entry = entry | {"params": before | entry["params"]}
                break
    path.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(entry, ensure_ascii=False)]), encoding="utf-8")


def _surplus_in(line: str) -> dict[str, str] | None:
    """Return the params that a line of the list holds as one entry; None if it is another, or none of ours."""
    try:
        return msgspec.json.decode(line, type=_Surplus).params
    except msgspec.MsgspecError:
        return None


class _Surplus(msgspec.Struct):
    record: Literal["params"]
    params: dict[str, str]


def _fill(store: Store, run_id: str, batch: Batch, reason: str) -> list[dict[str, Any]]:
    """Send as many params as the store still takes, in their order; those that are too many become one entry."""
    if len(batch) == 1:
        return [{"record": SURPLUS_PARAMS, "params": dict(batch.params), "reason": reason}]
    first, second = _halves(batch)
    refused = send_batch(store, run_id, first)
    surplus = next((entry for entry in refused if entry["record"] == SURPLUS_PARAMS), None)
    if surplus is None:
        return refused + send_batch(store, run_id, second)
    surplus["params"] |= second.params
    return refused


def _halves(batch: Batch) -> Iterator[Batch]:
    """Split by kind first, because a refusal usually concerns one kind."""
    kinds = [Batch(metrics=batch.metrics), Batch(params=batch.params), Batch(tags=batch.tags)]
    present = [kind for kind in kinds if len(kind)]
    if len(present) > 1:
        yield from present
        return
    middle = len(batch) // 2
    for part in (slice(None, middle), slice(middle, None)):
        yield Batch(
            metrics=batch.metrics[part],
            params=dict(list(batch.params.items())[part]),
            tags=dict(list(batch.tags.items())[part]),
        )


def _entry(batch: Batch, reason: str) -> dict[str, Any]:
    for point in batch.metrics:
        return {"record": "metric", **point._asdict(), "value": repr(point.value), "reason": reason}
    for name, text in batch.params.items():
        return {"record": "param", "name": name, "value": text, "reason": reason}
    name, text = next(iter(batch.tags.items()))
    return {"record": "tag", "name": name, "value": text, "reason": reason}
