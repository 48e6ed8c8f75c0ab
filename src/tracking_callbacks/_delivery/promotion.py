"""Lets an alias move to a new version if that is better than the version that holds it.

No registry can compare and set an alias in one request, and several training processes may end at once. So each
version says what it competes with (tags) before its delivery looks for others. Delivery compares the holder with all
versions whose comparison was not over when it began to look, and looks again after every move of the alias. The
delivery that moves it last has seen the tags of all others that are not over, so the best of them holds it in the end.
A version whose comparison was over by then is left alone: a user may have moved the alias since.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

from tracking_callbacks._delivery.failures import Refused
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.stores.store import Store, StoredVersion
from tracking_callbacks._journal.layout import PromotionState, RunState
from tracking_callbacks._journal.records import Promote

__all__ = ["Contender", "best_of", "deliver_promotion"]

logger = logging.getLogger(__name__)

ALIAS_TAG = "tracking_callbacks.promotion.alias"
BY_TAG = "tracking_callbacks.promotion.by"
FIGURE_TAG = "tracking_callbacks.promotion.figure"
DATA_TAG = "tracking_callbacks.promotion.data"
OUTCOME_TAG = "tracking_callbacks.promotion.outcome"
_PENDING = "pending"
_ROUNDS = 50  # each ends in a request that moves the alias; more would mean that another program works against it


class Contender(NamedTuple):
    """A version with what it is compared by; None means that it is unknown."""

    version: str
    figure: float | None
    data: str | None


def best_of(
    holder: Contender | None,
    contenders: Iterable[Contender],
    *,
    greater_is_better: bool,
    minimum_gain: float = 0.0,
) -> Contender | None:
    """Return the version that the alias belongs to; None means that nothing can be compared.

    Args:
        holder: The version that holds the alias; None if there is none. It may be one of the contenders.
        contenders: The versions that compete for it.
        greater_is_better: Whether the higher figure is the better one.
        minimum_gain: How much better than a holder from outside a contender must be. Contenders among themselves need
            no gain.
    """
    able = sorted(
        (one for one in contenders if one.figure is not None and not math.isnan(one.figure)),
        key=lambda one: int(one.version),
    )
    if not able:
        return holder
    reference = holder or able[0]
    same_data = [one for one in able if one.data is not None and one.data == reference.data]
    if holder is None:
        rivals = same_data or able[:1]
    elif any(one.version == holder.version for one in able):
        rivals = same_data
    else:
        gains = {one.version: _gain(one, holder, greater_is_better) for one in same_data}
        rivals = [one for one in same_data if gains[one.version] > 0 and gains[one.version] >= minimum_gain]
    return max(rivals, key=lambda one: _signed(one, greater_is_better), default=holder)  # of equal ones the oldest


def deliver_promotion(store: Store, once: Once, run_id: str, record: Promote, state: RunState) -> None:
    """Compare a registered version with the holder of the alias, and move the alias if it is better.

    Args:
        store: The store.
        once: Saves the delivery state, and notes a move of the alias whose outcome is unknown.
        run_id: The run that produced the version; all its points must have been delivered.
        record: What is compared.
        state: The delivery state of the run; receives the outcome.

    Raises:
        Refused: The model was not registered, or the store will never accept the alias.
        DeliveryError: A step failed; another call continues from there.
    """
    if (version := state.versions.get(record.record_key)) is None:
        raise Refused(f"the model was not registered, so the alias {record.alias[:200]!r} is not moved")
    logged = state.models.get(record.record_key)
    if logged is None or logged.registered != record.name:  # a journal is input from elsewhere
        raise Refused(f"the model was not registered as {record.name[:200]!r}")
    once.outlast(f"alias:{record.name}/{record.alias}")
    promotion = state.promotions.get(record.record_key)
    if promotion is None or promotion.outcome:
        promotion = state.promotions[record.record_key] = PromotionState()
    mine = Contender(version, _figure_of_run(store, run_id, record), record.data)
    if mine.figure is None or math.isnan(mine.figure):
        _conclude(store, record, mine, promotion, f"not compared: {_missing(store, run_id, record, mine)}")
        return
    store.tag_version(record.name, version, _tags(record, mine) | {OUTCOME_TAG: _PENDING})
    winner, over = _settle(store, once, record, mine, promotion)
    won = winner is not None and winner.version == version
    beaten, by = (over, mine) if won else (mine, winner)
    if record.challenger is not None and beaten is not None and by is not None and _can_be_compared(beaten, by):
        store.set_alias(record.name, record.challenger, beaten.version)
    # Last, because a comparison with an outcome is begun anew, and would not know any more who held the alias.
    _conclude(store, record, mine, promotion, _outcome(record, mine, winner, over))


def _missing(store: Store, run_id: str, record: Promote, mine: Contender) -> str:
    """Return why there is nothing to compare, with the metric that the user may have meant (``eval_F1``)."""
    at_step = "" if record.step is None else f" at step {record.step}, the step of the model"
    if mine.figure is not None:
        return f"{record.by} is not a number{at_step}"
    names = {point.key for point in store.run(run_id).metrics} - {record.by}
    like = [name for name in sorted(names) if _letters(name) == _letters(record.by)]
    return f"the run has no {record.by}{at_step}" + (f"; it has {like[0]}" if like else "")


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


def _settle(
    store: Store, once: Once, record: Promote, mine: Contender, promotion: PromotionState
) -> tuple[Contender | None, Contender | None]:
    """Move the alias until it is where it belongs; return that version and the one that held it at first."""
    over: Contender | None = None
    for _ in range(_ROUNDS):
        # The versions are asked for before the holder, see above.
        everyone = [one for one in store.versions(record.name) if _competes(one, record)]
        held = store.aliases(record.name).get(record.alias)
        if not promotion.begun:
            promotion.decided = [one.version for one in everyone if _is_decided(one) and one.version != mine.version]
            promotion.over = held if held != mine.version else None
            promotion.begun = True
            once.save()
        contenders = {one.version: _tagged(one) for one in everyone if one.version not in promotion.decided}
        contenders[mine.version] = mine
        over = over or (promotion.over and _holder(store, record, promotion.over, mine)) or None
        holder = held and (contenders.get(held) or _holder(store, record, held, mine))
        winner = best_of(
            holder or None,
            contenders.values(),
            greater_is_better=record.greater_is_better,
            minimum_gain=record.minimum_gain,
        )
        if winner is None or winner.version == held:
            return winner, over
        move = functools.partial(store.set_alias, record.name, record.alias, winner.version)
        once.overwrite(f"alias:{record.name}/{record.alias}", move)
    raise Refused(f"{record.alias} of {record.name} was moved back {_ROUNDS} times by another program")


def _figure_of_run(store: Store, run_id: str, record: Promote) -> float | None:
    """Return the value of the metric at the step of the model."""
    if record.step is None:
        return next((point.value for point in store.run(run_id).metrics if point.key == record.by), None)
    points = [point for point in store.history(run_id, record.by) if point.step == record.step]
    return max(points, key=lambda point: point.timestamp).value if points else None


def _holder(store: Store, record: Promote, version: str, mine: Contender) -> Contender | None:
    """Return the version that holds the alias, with its figure from its tags, else from its model, else its run.

    It is None if that version was deleted.
    """
    try:
        found = store.version(record.name, version)
    except Refused:
        return None
    if found.tags.get(BY_TAG) == record.by:
        return _tagged(found)
    figure = data = None
    try:
        points = store.model_points(found.model_id) if found.model_id else []
        figure = next((point.value for point in points if point.key == record.by), None)
        run = store.run(found.run_id) if found.run_id else None
    except Refused:
        run = None
    if run is not None:
        if figure is None:
            figure = next((point.value for point in run.metrics if point.key == record.by), None)
        digests = {one.digest for one in run.datasets if one.context == "evaluation"}
        data = mine.data if mine.data in digests else next(iter(digests)) if len(digests) == 1 else None
    return Contender(version, figure, data)


def _competes(version: StoredVersion, record: Promote) -> bool:
    tags = version.tags
    return tags.get(ALIAS_TAG) == record.alias and tags.get(BY_TAG) == record.by and FIGURE_TAG in tags


def _is_decided(version: StoredVersion) -> bool:
    return version.tags.get(OUTCOME_TAG, _PENDING) != _PENDING


def _tagged(version: StoredVersion) -> Contender:
    try:
        figure = float(version.tags.get(FIGURE_TAG, ""))
    except ValueError:
        figure = None
    return Contender(version.version, figure, version.tags.get(DATA_TAG) or None)


def _tags(record: Promote, mine: Contender) -> dict[str, str]:
    return {
        ALIAS_TAG: record.alias,
        BY_TAG: record.by,
        FIGURE_TAG: repr(mine.figure),
        DATA_TAG: mine.data or "",
    }


def _conclude(store: Store, record: Promote, mine: Contender, promotion: PromotionState, outcome: str) -> None:
    store.tag_version(record.name, mine.version, {OUTCOME_TAG: outcome})
    logger.info("%s version %s: %s", record.name, mine.version, outcome)
    promotion.outcome = outcome


def _outcome(record: Promote, mine: Contender, winner: Contender | None, over: Contender | None) -> str:
    said = f"{record.by} {_shown(mine)}"
    if winner is not None and winner.version == mine.version:
        if over is None:
            return f"{record.alias}: no version held it; {said}"
        return f"{record.alias}: {said} is better than {_shown(over)} of version {over.version}, on the same data"
    lost = f"not {record.alias}:"
    if winner is None:
        return f"{lost} {said} could not be compared"
    if winner.figure is None or math.isnan(winner.figure):
        return f"{lost} version {winner.version} holds it, and has no {record.by} to compare {_shown(mine)} with"
    compared = f"{_shown(winner)} of version {winner.version}"
    if mine.data is None or winner.data is None:
        return f"{lost} {said} and {compared} cannot be compared: it is not known which data they were measured on"
    if mine.data != winner.data:
        return f"{lost} {said} and {compared} were measured on different data ({mine.data} and {winner.data})"
    if _gain(mine, winner, record.greater_is_better) > 0:
        return f"{lost} {said} is better than {compared} by less than {record.minimum_gain:g}"
    return f"{lost} {said} is not better than {compared}, on the same data"


def _can_be_compared(one: Contender, other: Contender) -> bool:
    return one.figure is not None and other.figure is not None and one.data is not None and one.data == other.data


def _shown(one: Contender) -> str:
    return "?" if one.figure is None else f"{one.figure:.6g}"


def _signed(one: Contender, greater_is_better: bool) -> float:
    assert one.figure is not None
    return one.figure if greater_is_better else -one.figure


def _gain(one: Contender, holder: Contender, greater_is_better: bool) -> float:
    """Return how much better `one` is than `holder`; not a number if either is unknown."""
    if one.figure is None or holder.figure is None:
        return math.nan
    gain = _signed(one, greater_is_better) - _signed(holder, greater_is_better)
    return round(gain, 12)  # 0.83 - 0.81 is 0.019999999999999907
