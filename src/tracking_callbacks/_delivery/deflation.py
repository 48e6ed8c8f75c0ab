"""Says how much of a registered version's Sharpe ratio is luck: the versions before it were trials, too.

A version with a Sharpe ratio carries it as a tag, so that those after it find all of them with one request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from statistics import stdev

from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.stores.store import Store, StoredRun, StoredVersion
from tracking_callbacks._values.selection import expected_maximum_sharpe, probability_above

__all__ = ["deflate"]

logger = logging.getLogger(__name__)

RATIO_TAG = "tracking_callbacks.sharpe_ratio"
DEFLATED_TAG = "tracking_callbacks.deflated_sharpe_ratio"
_RATIO, _ERROR = "eval/sharpe_ratio", "eval/sharpe_adjusted_error"
_TRIALS = "sharpe.trials"  # param: how many agents the run's own was chosen from
_MOST_ASKED = 100  # versions without the tag, each of which costs a request


def deflate(store: Store, run: StoredRun, name: str, version: str, points: Iterable[Point]) -> str:
    """Tag a registered version, and its run, with its deflated Sharpe ratio over all versions so far.

    Args:
        store: The store.
        run: The run that produced the version.
        name: The registered model.
        version: The version.
        points: The figures of the version.

    Returns:
        The deflated ratio in words; empty if it is undefined: the version has no Sharpe ratio with an error, or no
        earlier one has.

    Raises:
        DeliveryError: A step failed; another call repeats it.
    """
    if (mine := _figures(points)) is None:
        return ""
    ratio, error = mine
    try:
        store.tag_version(name, version, {RATIO_TAG: repr(ratio)})
        earlier = [one for one in store.versions(name) if int(one.version) < int(version)]
        known = [_tagged(one) for one in earlier]
        unknown = [one for one, found in zip(earlier, known, strict=True) if found is None][-_MOST_ASKED:]
        ratios = [ratio, *(found for found in (*known, *(_linked(store, one) for one in unknown)) if found is not None)]
        if len(ratios) < 2:
            return ""
        text = _deflated(ratios, error, run.params.get(_TRIALS, ""))
        store.tag_version(name, version, {DEFLATED_TAG: text})
    except Refused as refusal:  # it was deleted meanwhile; the model itself is delivered
        logger.info("%s version %s: no deflated Sharpe ratio: %s", name, version, refusal)
        return ""
    store.log_batch(run.run_id, Batch(tags={DEFLATED_TAG: text}))
    return text


def _deflated(ratios: list[float], error: float, own_trials: str) -> str:
    """Return the probability that the first ratio is above what the best of so many reaches by luck, in words."""
    own = int(own_trials) if own_trials.isdecimal() and len(own_trials) < 10 else 1
    luck = expected_maximum_sharpe(len(ratios) - 1 + max(own, 1), stdev(ratios))
    trials = f" and {own} trials" if own > 1 else ""
    return f"{probability_above(luck, ratios[0], error):.6g} over {len(ratios)} versions{trials}"


def _figures(points: Iterable[Point]) -> tuple[float, float] | None:
    """Return the Sharpe ratio and its error; None unless both are known."""
    values = {point.key: point.value for point in points}
    ratio, error = values.get(_RATIO, math.nan), values.get(_ERROR, math.nan)
    return (ratio, error) if math.isfinite(ratio) and 0.0 < error < math.inf else None


def _tagged(version: StoredVersion) -> float | None:
    try:
        ratio = float(version.tags.get(RATIO_TAG, ""))
    except ValueError:
        return None
    return ratio if math.isfinite(ratio) else None


def _linked(store: Store, version: StoredVersion) -> float | None:
    """Return the Sharpe ratio that is linked to the version's model: its own delivery has not tagged it, or not yet."""
    if not version.model_id:
        return None
    try:
        found = _figures(store.model_points(version.model_id))
    except Refused:
        return None
    return None if found is None else found[0]
