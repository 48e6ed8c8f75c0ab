"""What delivery costs when there is nothing to deliver, and when it starts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import psutil

from benchmarks.bench import Bench, delivery_processes, wait_for
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.runs import stay_idle
from benchmarks.training import FIRST_STEPS, train_bert

__all__ = ["ROW"]

OURS = "this package"
UNTRACKED = "untracked"
SETTLING_SECONDS = 5.0


def _idle(bench: Bench) -> Figures:
    child = bench.start(stay_idle, uri=bench.server("server").uri)
    wait_for(child.said, "the first point has arrived", seconds=120)
    time.sleep(SETTLING_SECONDS)
    (delivery,) = delivery_processes(child.folder)
    seconds = bench.size(30, 5)
    before = _cpu(delivery)
    time.sleep(seconds)
    spent = _cpu(delivery) - before
    memory = delivery.memory_info().rss / 1e6
    child.answer()
    child.result()
    ended = time.perf_counter()
    wait_for(lambda: not delivery_processes(child.folder), "delivery finishes", seconds=60)
    return {
        "cpu_percent": 100 * spent / seconds,
        "memory_mb": memory,
        "outlives_s": time.perf_counter() - ended,
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _first_steps(bench: Bench, contender: str) -> Figures:
    uri = bench.server(contender).uri if contender == "ours" else "http://127.0.0.1:9"
    result = bench.run(train_bert, contender=contender, uri=uri, threads=0, steps=4 * FIRST_STEPS)
    return {name: result[name] for name in ("to_first_step_ms", "first_steps_s", "train_s", "step_p99_ms")}


def _trainings(*contenders: str) -> dict[str, Callable[[Bench], Figures]]:
    titles = {"ours": OURS, "untracked": UNTRACKED}
    return {titles[contender]: functools.partial(_first_steps, contender=contender) for contender in contenders}


ROW = Row(
    name="idle",
    title="Delivery that has nothing to do, and delivery that starts",
    method=(
        "A run logs one point and then nothing: the CPU time of its delivery process over half a minute, from five "
        "seconds after the point has arrived (`cpu_times`, all its threads), and how long delivery outlives the "
        "trainer after the run has ended. Then the training of row 2 with torch's default threads, but only its first "
        "200 steps, while delivery starts and creates the run."
    ),
    groups=(
        Group(
            title="nothing to do",
            contenders={OURS: _idle},
            columns=(
                Column("cpu_percent", "CPU, % of a core", 2),
                Column("memory_mb", "memory, MB"),
                Column("outlives_s", "outlives the trainer, s", 2),
            ),
            bars=(
                Bar("≤ 0.3 % of a core", lambda of: of.median(OURS, "cpu_percent"), 0.3),
                Bar("memory ≤ 40 MB", lambda of: of.median(OURS, "memory_mb"), 40),
                Bar("ends when its work ends, s", lambda of: of.worst(OURS, "outlives_s"), 5.0),
            ),
        ),
        Group(
            title=f"the first {FIRST_STEPS} steps, every core busy",
            contenders=_trainings("untracked", "ours"),
            columns=(
                Column("to_first_step_ms", "to the first step, ms"),
                Column("first_steps_s", f"first {FIRST_STEPS} steps, s", 3),
                Column("train_s", "`train()` of 200 steps, s", 2),
                Column("step_p99_ms", "step p99, ms"),
            ),
            bars=(
                Bar(
                    f"first {FIRST_STEPS} steps against untracked",
                    lambda of: of.ratio("first_steps_s", OURS, UNTRACKED),
                ),
                Bar("200 steps against untracked", lambda of: of.ratio("train_s", OURS, UNTRACKED)),
            ),
        ),
    ),
)
