"""Row plugin: MLflow's own programs over ``http://`` and ``journal+http://``."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.plugin_calls import time_import, time_mlflow_calls
from benchmarks.training import train_bert

__all__ = ["ROW"]

UNTRACKED, DIRECT, JOURNALED = "untracked", "http://", "journal+http://"
KEPT, NOTHING = "through the plugin", "MLflow's own layer alone"
LOADED = "its entry points, loaded"


def _train(bench: Bench, contender: str) -> Figures:
    prefix = "journal+" if contender == JOURNALED else ""
    uri = "http://127.0.0.1:9" if contender == UNTRACKED else prefix + bench.server(contender).uri
    tracked = "untracked" if contender == UNTRACKED else "transformers"
    return bench.run(train_bert, contender=tracked, uri=uri, threads=1, steps=bench.size(600, 60))


def _call(bench: Bench, *, kept: bool) -> Figures:
    uri = f"journal+{bench.server('server').uri}"
    return dict(bench.run(time_mlflow_calls, uri=uri, calls=bench.size(5_000, 200), kept=kept))


def _import(bench: Bench) -> Figures:
    return dict(bench.run(time_import))


def _of(contender: str) -> Callable[[Bench], Figures]:
    return functools.partial(_train, contender=contender)


ROW = Row(
    name="plugin",
    title="MLflow's own programs, with and without the plugin",
    method=(
        "The training of row 2 with one thread, tracked by transformers' own `MLflowCallback`; the tracking URI alone "
        "differs. The calls follow one another without a pause. MLflow's own layer is the same calls with a store that "
        "does nothing. `import mlflow` loads the plugin's entry points; their time is measured alone."
    ),
    groups=(
        Group(
            title="the same training with transformers' own callback",
            contenders={name: _of(name) for name in (UNTRACKED, DIRECT, JOURNALED)},
            columns=(
                Column("train_s", "`train()`, s", 2),
                Column("cpu_s", "its CPU, s", 2),
                Column("step_p50_ms", "step p50, ms"),
                Column("step_p99_ms", "step p99, ms"),
                Column("hooks_percent", "in hooks, %", 2),
            ),
            bars=(
                Bar("`train()` against `http://`", lambda of: of.ratio("train_s", JOURNALED, DIRECT)),
                Bar("`train()` against untracked", lambda of: of.ratio("train_s", JOURNALED, UNTRACKED)),
            ),
        ),
        Group(
            title="one call, one metric",
            contenders={
                KEPT: functools.partial(_call, kept=True),
                NOTHING: functools.partial(_call, kept=False),
            },
            columns=(
                Column("batch_p50_us", "`client.log_batch` p50, µs"),
                Column("client_p50_us", "`client.log_metric` p50, µs"),
                Column("fluent_p50_us", "`mlflow.log_metric` p50, µs"),
                Column("fluent_p99_us", "p99, µs"),
            ),
            bars=(
                Bar(
                    "`client.log_batch` ≤ 20 µs above nothing",
                    lambda of: of.median(KEPT, "batch_p50_us") - of.median(NOTHING, "batch_p50_us"),
                    20,
                ),
                Bar(
                    "`mlflow.log_metric` ≤ 1.15 × MLflow's own layer",
                    lambda of: of.ratio("fluent_p50_us", KEPT, NOTHING),
                    1.15,
                ),
            ),
        ),
        Group(
            title="import mlflow",
            contenders={LOADED: _import},
            columns=(Column("import_ms", "for the plugin, ms", 2),),
            bars=(Bar("≤ 5 ms for the plugin", lambda of: of.median(LOADED, "import_ms"), 5),),
        ),
    ),
)
