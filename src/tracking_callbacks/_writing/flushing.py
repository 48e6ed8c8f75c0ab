"""Waits for delivery, and prints how much is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from tracking_callbacks._journal.records import Model
from tracking_callbacks._writing.launch import detach_all
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks._writing.supervisor import current_supervisor

if TYPE_CHECKING:
    from tracking_callbacks._writing.session import RunJournal

__all__ = ["drain_at_exit", "outlast_supervisor", "wait_for_delivery", "wait_for_registration"]

_POLL_SECONDS = 0.05
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 5.0


def wait_for_delivery(journals: Sequence[RunJournal], timeout: float, *, at_exit: bool = False) -> list[DeliveryReport]:
    """Wait at most `timeout` seconds until everything in `journals` is delivered, and return their reports.

    At the exit of the interpreter, the wait ends where a person must act first.
    """
    started = time.monotonic()
    next_line = started + _QUIET_SECONDS
    last_line = ""
    while True:
        reports = [journal.report() for journal in journals]
        now = time.monotonic()
        if all(report.complete for report in reports):
            for journal in journals:
                journal.warn_if_blocked()  # a short training run ends before it could have warned
            break
        waited = now - started
        if waited >= timeout or (at_exit and waited >= _QUIET_SECONDS and _all_blocked(journals)):
            for journal in journals:
                journal.waited += waited
            _print_line(f"{_remaining(reports)} not delivered after {waited:.0f} s{_reason(reports)}")
            break
        for journal in journals:
            journal.ensure_delivery()
        if now >= next_line:
            line = f"delivering for at most {timeout:.0f} s, {_remaining(reports)} left{_reason(reports)}"
            if line != last_line:
                _print_line(line)
            next_line, last_line = now + _LINE_SECONDS, line
        time.sleep(_POLL_SECONDS)
    return reports


def wait_for_registration(
    journal: RunJournal, models: Sequence[Model], promoted: Collection[str], timeout: float, run: Callable[[], str]
) -> None:
    """Wait at most `timeout` seconds until `models` are registered, as long as the store answers; print the outcome.

    Args:
        journal: The journal that holds their records.
        models: Records of models that name a registered model.
        promoted: Keys of those records whose versions are compared with the holder of an alias.
        timeout: Seconds.
        run: Returns how to speak of the run, with its status and link.
    """
    started = time.monotonic()
    while True:
        state = journal.state()
        registered = all(model.record_key in state.versions for model in models)
        compared = all(key in state.promotions and state.promotions[key].outcome for key in promoted)
        if (registered and compared) or state.last_error:
            break
        if journal.report().complete:
            state = journal.state()
            break
        if time.monotonic() - started >= timeout:
            journal.waited += timeout
            break
        journal.ensure_delivery()
        time.sleep(_POLL_SECONDS)
    for model in models:
        version = state.versions.get(model.record_key)
        aliases = "".join(f" @{alias}" for alias in model.aliases)
        if version is not None:
            promotion = state.promotions.get(model.record_key)
            outcome = f"; {promotion.outcome}" if promotion is not None and promotion.outcome else ""
            _print_line(f"{model.registered_model_name} version {version}{aliases} from {run()}{outcome}")
        elif journal.report().complete:
            _print_line(f"{model.registered_model_name} is not registered; the store refused it (see rejected.jsonl)")
        else:
            why = f" ({state.last_error})" if state.last_error else f" after {timeout:.0f} s"
            _print_line(f"{model.registered_model_name} is not registered yet{why}; delivery goes on in the background")


def outlast_supervisor(journal: RunJournal, timeout: float) -> None:
    """Wait for delivery where it cannot go on after this process, as in a worker of Ray.

    The wait ends after `timeout` seconds, those of earlier waits included, and at once where the store does not answer.
    """
    supervisor = current_supervisor()
    timeout -= journal.waited
    if supervisor is None or journal.offline or timeout <= 0:
        return
    started = time.monotonic()
    while not (report := journal.report()).complete:
        if report.last_error or time.monotonic() - started >= timeout:
            journal.waited += time.monotonic() - started
            _print_line(
                f"{_remaining([report])} not delivered yet{_reason([report])}; if {supervisor} ends this job before "
                f"that, 'tracking-callbacks sync {journal.root.path}' will deliver it"
            )
            return
        journal.ensure_delivery()
        time.sleep(_POLL_SECONDS)


def drain_at_exit(journals: Sequence[RunJournal]) -> None:
    """Wait for the delivery of all journals that are not offline, then let the delivery process go on by itself.

    Of those that are offline, it is said where they are.
    """
    waiting = [journal for journal in journals if not journal.offline and not journal.report().complete]
    if waiting:
        timeout = max(journal.flush_timeout - journal.waited for journal in waiting)
        reports = wait_for_delivery(waiting, max(timeout, 0.0), at_exit=True)
        if not all(report.complete for report in reports):
            _print_line(
                f"delivery goes on in the background; if this machine stops before it ends, "
                f"'tracking-callbacks sync {waiting[0].root.path}' will finish it"
            )
    offline = [journal for journal in journals if journal.offline and not journal.report().complete]
    for root in sorted({str(journal.root.path) for journal in offline}):
        _print_line(f"what was logged offline is in {root}; 'tracking-callbacks sync {root}' delivers it")
    detach_all()


def _all_blocked(journals: Sequence[RunJournal]) -> bool:
    return all(journal.report().complete or journal.state().blocked for journal in journals)


def _remaining(reports: Sequence[DeliveryReport]) -> str:
    pending = sum(report.pending for report in reports)
    return f"{pending} record{'s' * (pending > 1)}" if pending else "the end of the run"


def _reason(reports: Sequence[DeliveryReport]) -> str:
    errors = {report.last_error for report in reports if report.last_error}
    return f" ({'; '.join(sorted(errors))})" if errors else ""


def _print_line(message: str) -> None:
    print(f"tracking_callbacks: {message}", file=sys.stderr, flush=True)
