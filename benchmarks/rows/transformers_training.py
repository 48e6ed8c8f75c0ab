"""Row 2: a Trainer that logs every step."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.training import train_bert

__all__ = ["ROW"]

UNTRACKED = "untracked"
BARE = "untracked, next to a bare sender"
OURS = "this package, HTTP"


def _measure(bench: Bench, contender: str, threads: int, store: str = "http") -> Figures:
    if contender == "untracked":
        uri = "http://127.0.0.1:9"  # not measured
    elif store == "sqlite":
        uri = f"sqlite:///{bench.folder('sqlite')}/mlflow.db"
    else:
        uri = bench.server(contender).uri
    return bench.run(train_bert, contender=contender, uri=uri, threads=threads, steps=bench.size(600, 60))


def _group(title: str, threads: int) -> Group:
    def of(contender: str, store: str = "http") -> Callable[[Bench], Figures]:
        return functools.partial(_measure, contender=contender, threads=threads, store=store)

    return Group(
        title=title,
        contenders={
            UNTRACKED: of("untracked"),
            BARE: of("bare"),
            OURS: of("ours"),
            "transformers' MLflowCallback, HTTP": of("transformers"),
            "transformers' MLflowCallback, SQLite": of("transformers", "sqlite"),
        },
        columns=(
            Column("train_s", "`train()`, s", 2),
            Column("cpu_s", "its CPU, s", 2),
            Column("step_p50_ms", "step p50, ms"),
            Column("step_p99_ms", "step p99, ms"),
            Column("hooks_percent", "in hooks, %", 2),
            Column("hooks_cpu_s", "hooks' CPU, s", 3),
            Column("flush_s", "then flush, s", 2),
        ),
        bars=(
            Bar("time inside hooks ≤ 0.8 % of `train()`", lambda of: of.median(OURS, "hooks_percent"), 0.8),
            Bar("`train()` ≤ 1.02 × untracked", lambda of: of.ratio("train_s", OURS, UNTRACKED), 1.02),
            Bar("step p99 ≤ 1.08 × untracked", lambda of: of.ratio("step_p99_ms", OURS, UNTRACKED), 1.08),
            Bar("`train()` next to a bare sender, × untracked", lambda of: of.ratio("train_s", BARE, UNTRACKED)),
            Bar("step p99 next to a bare sender, × untracked", lambda of: of.ratio("step_p99_ms", BARE, UNTRACKED)),
        ),
    )


ROW = Row(
    name="2",
    title="Fine-tuning with `logging_steps=1`",
    method=(
        "A tiny BERT with LoRA, 600 steps. A step is the time between two `on_step_begin` calls. Time inside hooks is "
        "measured around every hook that the callback defines, also for transformers' own callback. Delivery starts "
        "with training; transformers' callback gets a process that has imported MLflow and a database that has its "
        "tables. `log_model=False`, because transformers' callback logs no model either. The last column is the time "
        "for what this package still has to deliver after `train()`; the peer has none because its steps wait. Ratios "
        "are medians of the rounds' ratios. The bare sender shows what a training run loses to the server and to any "
        "process that sends to it from the same cores: it starts with `train()`, has the priority of our delivery, "
        "loads urllib3 alone and sends as many made-up points, four times a second; the training run is untracked."
    ),
    groups=(
        _group("torch's default threads, every core busy", 0),
        _group("one thread", 1),
    ),
)
