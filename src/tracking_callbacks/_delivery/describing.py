"""Writes the descriptions of a run and of its registered versions, never over a user's own words."""

from __future__ import annotations

import logging

from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import NotOffered, Refused
from tracking_callbacks._delivery.report_card import (
    NOTE_TAG,
    CardModel,
    Column,
    column,
    is_ours,
    loading_call,
    run_card,
    signed,
    version_card,
)
from tracking_callbacks._delivery.run_resolver import PARENT_TAG
from tracking_callbacks._delivery.stores.store import Store, StoredRun
from tracking_callbacks._journal.layout import RunState
from tracking_callbacks._journal.records import Status, now_ms

__all__ = ["deliver_descriptions"]

logger = logging.getLogger(__name__)

_PAUSE_MS = 10_000  # between two descriptions of a run that goes on


def deliver_descriptions(store: Store, run_id: str, state: RunState, status: Status | None) -> None:
    """Describe the run, and at its end its registered versions.

    Args:
        store: The store.
        run_id: The run; its points must have been delivered.
        state: The delivery state of the run; notes the time.
        status: How it ended; None while it goes on.

    Raises:
        DeliveryError: A step failed; another call repeats it.
    """
    now = now_ms()
    if status is None and 0 <= now - state.described < _PAUSE_MS:
        return
    state.described = now
    run = store.run(run_id)
    models = {key: _card_model(key, state) for key in state.models}
    if is_ours(run.tags.get(NOTE_TAG, "")):
        registered = [state.models[key].model_id for key, model in models.items() if model.registered is not None]
        # While training goes on, its last figures are of more interest.
        own = _linked(store, registered[-1]) if registered and status is not None else []
        figures, reference = column("value", run.metrics, own), _reference(store, run, state)
        text = run_card(run, status, list(models.values()), state.pictures.values(), figures, reference)
        if text and (note := signed(text)) != run.tags.get(NOTE_TAG):
            store.log_batch(run_id, Batch(tags={NOTE_TAG: note}))
    if status is None:
        return
    for key, model in models.items():
        if model.registered is not None:
            _describe_version(store, run, model, *model.registered, model_id=state.models[key].model_id)


def _describe_version(
    store: Store, run: StoredRun, model: CardModel, name: str, number: str, *, model_id: str | None
) -> None:
    try:
        version = store.version(name, number)
        points = store.model_points(model_id) if model_id is not None else run.metrics
    except (Refused, NotOffered):  # deleted meanwhile, or a store that keeps no logged models
        return
    if is_ours(version.description):
        text = signed(version_card(run, model, points))
        if text != version.description:
            store.describe_version(name, number, text)


def _card_model(key: str, state: RunState) -> CardModel:
    model, version, promotion = state.models[key], state.versions.get(key), state.promotions.get(key)
    registered = (model.registered, version) if model.registered is not None and version is not None else None
    outcome = promotion.outcome if promotion is not None else ""
    return CardModel(loading_call(model.flavors), registered, outcome, model.deflated)


def _linked(store: Store, model_id: str | None) -> list[Point]:
    """Return the points that belong to a logged model; none if the store has none."""
    try:
        return store.model_points(model_id) if model_id else []
    except Refused:  # deleted meanwhile, or a store that keeps no logged models
        return []


def _reference(store: Store, run: StoredRun, state: RunState) -> Column | None:
    """Return the figures to show next to the run's: those of the version that held the alias, else of the parent."""
    try:
        for key, promotion in state.promotions.items():
            if promotion.over is not None and (name := state.models[key].registered) is not None:
                other = store.version(name, promotion.over)
                if other.run_id:
                    last = store.run(other.run_id).metrics
                    return column(f"version {promotion.over}", last, _linked(store, other.model_id))
        if parent := run.tags.get(PARENT_TAG):
            return column("parent run", store.run(parent).metrics)
    except Refused as error:
        logger.info("run %s: described without another one's figures: %s", run.run_id, error)
    return None
