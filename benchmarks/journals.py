"""Waiting journals, and their delivery by a separate process, as ``tracking-callbacks sync`` does it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench, Store
from benchmarks.runs import write_offline
from tracking_callbacks._journal.layout import JournalRoot, RunState
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._writing.launch import start_sync

__all__ = ["Delivery", "Waiting", "waiting_journal"]

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Waiting:
    """A run in a journal that is not delivered yet."""

    root: Path
    run_key: str
    store: Store

    def state(self) -> RunState | None:
        """Return what delivery knows about the run, from its folder or after the folder is removed."""
        root = JournalRoot(self.root)
        return root.run(self.run_key).read_state() or root.final_state(self.run_key)

    def forget_acknowledgements(self) -> None:
        """Delete the record of how much the store has."""
        (JournalRoot(self.root).run(self.run_key).path / "state.json").unlink()


def waiting_journal(bench: Bench, store: Store, points: int) -> Waiting:
    """Write a journal of `points` without delivering it."""
    root = bench.folder("journal")
    result = bench.run(write_offline, uri=store.uri, journal_root=str(root), points=points)
    return Waiting(root, result["run_key"], store)


class Delivery:
    """One delivery process for one waiting journal.

    Attributes:
        process: The process.
        whole_s: Seconds from its start to its end.
        sending_s: Seconds from the first acknowledgement to the last, without MLflow's import and the run's creation.
        sent: Points that were acknowledged in that time.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._began = time.perf_counter()
        record = StoreAddress(waiting.store.uri, str(waiting.root))
        self.process: subprocess.Popen[bytes] = start_sync(
            waiting.root, record, waiting.store.uri, None, PATIENCE_SECONDS
        )
        self.whole_s = self.sending_s = 0.0
        self.sent = 0

    def watch(self, until: int | None = None) -> RunState:
        """Wait until `until` points are acknowledged or the process ends."""
        first: tuple[float, int] | None = None
        last: tuple[float, int] = (self._began, 0)
        try:
            while True:
                running = self.process.poll() is None
                state = self._waiting.state()
                delivered = sum(one.delivered for one in state.sessions.values()) if state else 0
                if delivered > last[1]:
                    last = (time.perf_counter(), delivered)
                    first = first or last
                if not running or (until is not None and delivered >= until):
                    break
                time.sleep(0.02)
            self.whole_s = time.perf_counter() - self._began
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        assert state is not None, "nothing was delivered"
        if first is not None:
            self.sending_s, self.sent = last[0] - first[0], last[1] - first[1]
        return state
