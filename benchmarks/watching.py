"""How soon after logging a point is in the store, found by polling the server's database."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from benchmarks.bench import Bench, Child, Store, wait_for
from benchmarks.comparison import Figures
from benchmarks.runs import log_at_pace
from benchmarks.timing import percentile

__all__ = ["Seen", "freshness", "watch"]

_POLL_SECONDS = 0.05
Seen = list[tuple[int, int]]  # when a point was logged, when it was seen in the store; ms since the epoch


def watch(bench: Bench, store: Store, seconds: int, hertz: int, **settings: object) -> tuple[Child, Seen, int | None]:
    """Log at a steady pace in a fresh process and watch for every point.

    Returns:
        The ended process; when each point was logged and seen; when the checkpoint was seen, if there was one.
    """
    child = bench.start(log_at_pace, uri=store.uri, seconds=seconds, hertz=hertz, **settings)
    words = wait_for(child.said, "delivery is up", seconds=120)
    seen: Seen = []
    uploaded: int | None = None
    checkpoint = Path(str(settings["checkpoint"])) if settings.get("checkpoint") else None
    with contextlib.closing(store.connect()) as database:
        query = "SELECT rowid, timestamp FROM metrics WHERE run_uuid = ? AND key = 'value' AND rowid > ?"
        last = 0
        while child.running():
            found = database.execute(query, [words["run_id"], last]).fetchall()
            now = time.time_ns() // 1_000_000
            last = max([last, *(row for row, _ in found)])
            seen += [(logged, now) for _, logged in found]
            if checkpoint and uploaded is None and _arrived(store, checkpoint):
                uploaded = now
            time.sleep(_POLL_SECONDS)
    return child, seen, uploaded


def freshness(seen: Seen) -> Figures:
    """Return the freshness of the points in `seen`."""
    delays = [(there - logged) / 1000 for logged, there in seen]
    return {"points": len(seen), "p50_s": percentile(delays, 50), "p95_s": percentile(delays, 95), "max_s": max(delays)}


def _arrived(store: Store, checkpoint: Path) -> bool:
    size = checkpoint.stat().st_size
    found = store.artifacts.rglob(checkpoint.name)
    return any(path.stat().st_size == size for path in found)
