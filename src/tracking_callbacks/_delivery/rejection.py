"""Sends a batch of which the store may refuse some entries: the rest arrives, and the refused ones are returned."""

from __future__ import annotations

from collections.abc import Iterator

from tracking_callbacks._delivery.batches import Batch
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.stores.client import MlflowStore

__all__ = ["send_batch"]

_DRIFT_TAG_PREFIX = "param_drift."
_MAX_KEY = 250


def send_batch(store: MlflowStore, run_id: str, batch: Batch) -> list[dict[str, object]]:
    """Send `batch`; if the store refuses it, halve it until each entry is either delivered or known to be wrong.

    Returns:
        One mapping per refused entry: what it was, and the store's reason.

    Raises:
        Blocked: The run itself cannot be written to, for example because it was deleted.
        DeliveryError: The store did not accept the batch this time. Sending the whole batch again is harmless.
    """
    if not len(batch):
        return []
    try:
        store.log_batch(run_id, batch)
    except Refused as error:
        logged = store.check_active(run_id).data.params
        drifted = {name: text for name, text in batch.params.items() if logged.get(name, text) != text}
        if drifted:
            # Params are immutable in MLflow: the first value stays, and a tag shows what the later session had.
            tags = {f"{_DRIFT_TAG_PREFIX}{name}"[:_MAX_KEY]: text for name, text in drifted.items()}
            send_batch(store, run_id, Batch(tags=tags))
            params = {name: text for name, text in batch.params.items() if name not in drifted}
            return send_batch(store, run_id, Batch(metrics=batch.metrics, params=params, tags=batch.tags))
        if len(batch) > 1:
            return [entry for half in _halves(batch) for entry in send_batch(store, run_id, half)]
        return [_entry(batch, str(error))]
    return []


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


def _entry(batch: Batch, reason: str) -> dict[str, object]:
    for point in batch.metrics:
        return {"record": "metric", **point._asdict(), "value": repr(point.value), "reason": reason}
    for name, text in batch.params.items():
        return {"record": "param", "name": name, "value": text, "reason": reason}
    name, text = next(iter(batch.tags.items()))
    return {"record": "tag", "name": name, "value": text, "reason": reason}
