"""Row 9: a large checkpoint."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.runs import write_checkpoint
from benchmarks.watching import freshness, watch

__all__ = ["ROW"]

NOTHING = "no checkpoint"
LINKED = "`torch.save`, `log_checkpoint`"
COPIED = "`torch.save`, `log_artifact`"


def _measure(bench: Bench, name: str, *, copied: bool = False) -> Figures:
    store = bench.server("server")
    settings: dict[str, object] = {}
    if name:
        # A new name, because the artifacts of earlier rounds are still on the server.
        folder = bench.folder("checkpoint")
        settings |= {"checkpoint": str(folder / f"{folder.name}{name}"), "copied": copied}
        bench.run(write_checkpoint, path=settings["checkpoint"], megabytes=bench.size(500, 50))
    child, seen, uploaded = watch(bench, store, bench.size(25, 6), 20, **settings)
    figures = child.result()
    if name:
        words = child.said()
        assert words is not None
        assert uploaded is not None, "the checkpoint did not arrive"
        seen = [(logged, there) for logged, there in seen if words["logged"] <= logged <= uploaded]
        figures["upload_s"] = (uploaded - words["logged"]) / 1000
    return figures | freshness(seen)


ROW = Row(
    name="9",
    title="A checkpoint of 500 MB",
    method=(
        "A run logs twenty points per second and, after three seconds, the checkpoint. The hook is the time of that "
        "call. Freshness is measured as in row 8, for the points that were logged between the call and the moment when "
        "the server has the whole file. `run.log_checkpoint` holds the file by a hard link, which delivery copies and "
        "checks; `run.log_artifact` copies it at once, unless the file system shares blocks."
    ),
    groups=(
        Group(
            title="while it uploads to an HTTP server",
            contenders={
                NOTHING: lambda bench: _measure(bench, ""),
                LINKED: lambda bench: _measure(bench, ".pt"),
                COPIED: lambda bench: _measure(bench, ".pt", copied=True),
            },
            columns=(
                Column("hook_ms", "hook, ms", 2),
                Column("hook_cpu_ms", "its CPU, ms", 2),
                Column("upload_s", "upload, s", 2),
                Column("points", "points", 0),
                Column("p50_s", "p50, s", 2),
                Column("p95_s", "p95, s", 2),
            ),
            bars=(
                Bar("hook ≤ 5 ms", lambda of: of.median(LINKED, "hook_ms"), 5),
                Bar("metrics keep their freshness: p95 ≤ 1.5 s", lambda of: of.median(LINKED, "p95_s"), 1.5),
                Bar("hook with a copy, ms", lambda of: of.median(COPIED, "hook_ms")),
            ),
        ),
    ),
)
