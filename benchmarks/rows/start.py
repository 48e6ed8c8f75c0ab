"""Row 6: the cost of the start."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.bench import ROOT, Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.runs import start_tracker
from benchmarks.training import train_bert, train_example

__all__ = ["ROW"]

UNTRACKED = "untracked"
ALONE = "this package, tracker alone"
COMPLETE = "this package, with everything a run holds"
PEER = "transformers' MLflowCallback"
OURS = "tracking_callbacks"
IMPORT = """
import time
spent, began = time.thread_time(), time.perf_counter()
import {module}
print(1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - spent))
"""


def _training(bench: Bench, contender: str, *, everything: bool = True) -> Figures:
    uri = f"sqlite:///{bench.folder('cold')}/mlflow.db"
    result = bench.run(train_bert, contender=contender, uri=uri, threads=0, steps=10, everything=everything)
    return {name: result[name] for name in ("begin_ms", "begin_cpu_ms", "to_first_step_ms")}


def _core(bench: Bench, *, everything: bool) -> Figures:
    store = f"sqlite:///{bench.folder('cold')}/mlflow.db"
    root = bench.folder("journal")
    return bench.run(start_tracker, uri=store, journal_root=str(root), everything=everything, cwd=ROOT)


def _example(bench: Bench, name: str) -> Figures:
    return bench.run(train_example, name=name, examples=str(ROOT / "examples"))


def _import(bench: Bench, module: str) -> Figures:
    def once() -> list[float]:
        command = [sys.executable, "-c", IMPORT.format(module=module)]
        printed = subprocess.run(command, cwd=bench.folder(), check=True, capture_output=True, text=True).stdout
        return [float(figure) for figure in printed.splitlines()[-1].split()]

    once()  # writes the bytecode cache
    wall, cpu = zip(*(once() for _ in range(bench.size(5, 1))), strict=True)
    return {"ms": statistics.median(wall), "cpu_ms": statistics.median(cpu)}


def _imports(*modules: str) -> dict[str, Callable[[Bench], Figures]]:
    return {module: functools.partial(_import, module=module) for module in modules}


ROW = Row(
    name="6",
    title="The start",
    method=(
        "Each run logs to a local SQLite store that does not exist yet; delivery creates it. The first table is "
        "`on_train_begin` of a Trainer callback, and the whole time between the call of `train()` and the first step, "
        "with torch's default threads, in a project without git. For transformers' callback MLflow is imported and the "
        "database is created beforehand, which would cost a user seconds more. The second table is the core on its "
        "own, started in this git repository, so that it records the source too. The third is an import in a fresh "
        "interpreter with its bytecode cached, the median of five per round. The last table covers the complete "
        "training scripts of `make demo`: the hook at the start, the hook at the end without saving the model, and "
        "saving the model on its own, including the import of MLflow for it."
    ),
    groups=(
        Group(
            title="from on_train_begin to the first step",
            contenders={
                UNTRACKED: lambda bench: _training(bench, "untracked"),
                ALONE: lambda bench: _training(bench, "ours", everything=False),
                COMPLETE: lambda bench: _training(bench, "ours"),
                PEER: lambda bench: _training(bench, "transformers"),
            },
            columns=(
                Column("begin_ms", "`on_train_begin`, ms"),
                Column("begin_cpu_ms", "its CPU, ms"),
                Column("to_first_step_ms", "`train()` to first step, ms"),
            ),
            bars=(
                Bar("tracker itself ≤ 30 ms", lambda of: of.median(ALONE, "begin_ms"), 30),
                Bar("with everything ≤ 150 ms", lambda of: of.median(COMPLETE, "begin_ms"), 150),
            ),
        ),
        Group(
            title="start_run and the first point, in a git repository",
            contenders={
                ALONE: lambda bench: _core(bench, everything=False),
                COMPLETE: lambda bench: _core(bench, everything=True),
            },
            columns=(
                Column("start_ms", "`start_run`, ms"),
                Column("first_log_ms", "first `log_metrics`, ms", 3),
                Column("cpu_ms", "CPU of both, ms"),
                Column("end_ms", "`end`, ms"),
            ),
            bars=(
                Bar("tracker itself ≤ 30 ms", lambda of: of.median(ALONE, "start_ms"), 30),
                Bar("with everything ≤ 150 ms", lambda of: of.median(COMPLETE, "start_ms"), 150),
            ),
        ),
        Group(
            title="import",
            contenders=_imports(OURS, "trackio", "wandb", "mlflow"),
            columns=(Column("ms", "ms"), Column("cpu_ms", "CPU, ms")),
            bars=(Bar("`import tracking_callbacks` ≤ 100 ms", lambda of: of.median(OURS, "ms"), 100),),
        ),
        Group(
            title="the demo's trainings",
            contenders={name: functools.partial(_example, name=name) for name in ("sentiment", "trading")},
            columns=(
                Column("begin_ms", "start, ms"),
                Column("end_ms", "end, ms"),
                Column("model_ms", "saving the model, ms", 0),
            ),
            bars=(
                Bar("start ≤ 150 ms", lambda of: max(of.median(name, "begin_ms") for name in of.taken), 150),
                Bar("end ≤ 1.5 s", lambda of: max(of.median(name, "end_ms") for name in of.taken), 1500),
            ),
        ),
    ),
)
