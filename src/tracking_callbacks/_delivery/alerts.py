"""Looks for what the user wants to be told about a run, in its journals, whether the store answers or not."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from tracking_callbacks._delivery.notices import Notice, NoticeError, send
from tracking_callbacks._delivery.session_journal import SessionJournal
from tracking_callbacks._journal.frames import read_chunk
from tracking_callbacks._journal.layout import RunState
from tracking_callbacks._journal.records import PRUNED_TAG, AlertRule, Metrics, RunEnded, Tags, now_ms
from tracking_callbacks._values.alerts import Condition, parse_condition
from tracking_callbacks._values.store_uri import run_link
from tracking_callbacks.errors import ConfigError

__all__ = ["AlertWatch"]

logger = logging.getLogger(__name__)

_REMEMBERED = 100  # points of a metric, for their median
_FEWEST = 20  # points before a metric can explode
_TIMES = 10.0
_LINK_SECONDS = 10.0


class AlertWatch:
    """Looks for the conditions of one run's alerts, and sends each of them once.

    It reads the journals by itself, because the points lane stops where the store does not answer.

    Args:
        state: The run's state, which keeps what was sent.
        save: Saves it.
    """

    def __init__(self, state: RunState, save: Callable[[], None]) -> None:
        self._state = state
        self._save = save
        self._offsets: dict[str, int] = {}
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._found: dict[str, str] = {}
        self._last_point = 0
        self._statuses: dict[str, str] = {}
        self._pruned = False
        self._sender: ThreadPoolExecutor | None = None
        self._sending: set[str] = set()
        self._waiting_since = 0.0

    def look(self, sessions: Sequence[SessionJournal]) -> None:
        """Read what has come to the journals, and send what is due."""
        rules = {rule.when: rule for session in sessions for rule in session.opened.alerts}
        conditions = {when: condition for when in rules if (condition := _parsed(when)) is not None}
        if not conditions:
            return
        for session in sessions:
            self._read(session, conditions)
        for when, condition in conditions.items():
            what = self._found.get(when) or self._of_run(condition, sessions)
            if what and self._can_name_the_run():
                self._notify(rules[when], what, sessions[0])

    def idle(self) -> bool:
        """Return whether no alert is on its way."""
        return not self._sending

    def _can_name_the_run(self) -> bool:
        """Return whether the run's link is known, or will not be for some time."""
        if self._state.run_id is not None or self._state.last_error:
            return True
        self._waiting_since = self._waiting_since or time.monotonic()
        return time.monotonic() - self._waiting_since > _LINK_SECONDS

    def _read(self, session: SessionJournal, conditions: dict[str, Condition]) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has just been delivered
            at_end = False
            while not at_end:
                chunk = read_chunk(session.path, self._offsets.get(session.name, 0), complete=session.known_finished)
                for record, _ in chunk.records:
                    if isinstance(record, Metrics):
                        self._last_point = max(self._last_point, record.timestamp)
                        self._compare(record, conditions)
                    elif isinstance(record, Tags):
                        self._pruned = self._pruned or PRUNED_TAG in record.tags
                    elif isinstance(record, RunEnded):
                        self._statuses[session.name] = record.status or ""
                self._offsets[session.name] = chunk.end
                at_end = chunk.at_end or not chunk.records

    def _compare(self, record: Metrics, conditions: dict[str, Condition]) -> None:
        for when, condition in conditions.items():
            value = record.metrics.get(condition.metric)
            if value is None or when in self._found:
                continue
            where = f"{condition.metric} = {value:.6g} at step {record.step}"
            if condition.kind == "explodes":
                recent = self._recent[when]
                if not math.isfinite(value) or (len(recent) >= _FEWEST and abs(value) > _TIMES * abs(median(recent))):
                    self._found[when] = where
                recent.append(value if math.isfinite(value) else 0.0)
            elif condition.holds(value):
                self._found[when] = where

    def _of_run(self, condition: Condition, sessions: Sequence[SessionJournal]) -> str:
        """Return what is wrong with the run as a whole, as far as `condition` asks for it."""
        dead = [one for one in sessions if one.opened.intent == "own" and one.finished() and self._status(one) is None]
        match condition.kind:
            case "fails" if "FAILED" in self._statuses.values():
                return "the run has FAILED"
            case "fails" | "dies" if dead:
                return "the training process was killed"
            case "fails" | "dies" if "KILLED" in self._statuses.values() and not self._pruned:
                return "the run was KILLED"
            case "refused" if rejected := sum(one.rejected for one in self._state.sessions.values()):
                return f"the store has refused {rejected} record{'' if rejected == 1 else 's'}"
            case "no progress" if any(not one.known_finished for one in sessions):
                began = max(one.opened.timestamp for one in sessions)
                seconds = (now_ms() - max(self._last_point, began)) / 1000
                return f"no metric for {seconds:.0f} s" if seconds > condition.number else ""
        return ""

    def _status(self, session: SessionJournal) -> str | None:
        ended = session.state.ended
        return self._statuses.get(session.name, ended[0] if ended is not None else None)

    def _notify(self, rule: AlertRule, what: str, session: SessionJournal) -> None:
        for channel in rule.notify:
            key = f"{rule.when} {channel}"
            if key in self._state.alerted or key in self._sending:
                continue
            opened = session.opened
            notice = Notice(
                run=opened.run_name or self._state.run_id or opened.run_key,
                run_id=self._state.run_id,
                experiment=opened.experiment,
                condition=rule.when,
                what=what,
                url=run_link(opened.store.uri, self._state.experiment_id, self._state.run_id),
            )
            self._sending.add(key)
            self._sender = self._sender or ThreadPoolExecutor(max_workers=1, thread_name_prefix="alerts")
            self._sender.submit(self._send, key, channel, notice)

    def _send(self, key: str, channel: str, notice: Notice) -> None:
        try:
            send(channel, notice)
            logger.info("alert sent: %s", notice.text)
        except NoticeError as error:
            logger.warning("alert %r could not be sent by %s: %s", notice.condition, channel, error)
        finally:
            self._state.alerted.append(key)
            self._save()
            self._sending.discard(key)


def _parsed(when: str) -> Condition | None:
    try:
        return parse_condition(when)
    except ConfigError:  # a journal from elsewhere
        return None
