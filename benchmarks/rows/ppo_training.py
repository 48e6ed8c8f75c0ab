"""Row 3: PPO on CartPole."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.comparison import Bar, Column, Figures, Group, Row
from benchmarks.training import train_ppo

__all__ = ["ROW"]

UNTRACKED = "untracked"
BARE = "untracked, next to a bare sender"
OURS = "this package, HTTP"
TIMED = "the same, its hooks timed"


def _measure(bench: Bench, contender: str, envs: int, rollout: int, *, timed: bool = False) -> Figures:
    uri = bench.server(contender).uri if contender in ("bare", "ours", "docs") else ""
    steps = bench.size(50_000, 4_096)
    return bench.run(train_ppo, contender=contender, uri=uri, envs=envs, rollout=rollout, steps=steps, timed=timed)


def _group(title: str, envs: int, rollout: int) -> Group:
    def of(contender: str, *, timed: bool = False) -> Callable[[Bench], Figures]:
        return functools.partial(_measure, contender=contender, envs=envs, rollout=rollout, timed=timed)

    return Group(
        title=title,
        contenders={
            UNTRACKED: of("untracked"),
            BARE: of("bare"),
            OURS: of("ours"),
            TIMED: of("ours", timed=True),
            "writer of SB3's docs, HTTP": of("docs"),
            "wandb offline": of("wandb"),
        },
        columns=(
            Column("fps", "steps/s", 0),
            Column("learn_s", "`learn()`, s", 2),
            Column("cpu_s", "its CPU, s", 2),
            Column("hooks_percent", "in hooks, %", 2),
            Column("close_s", "then close, s", 2),
        ),
        bars=(
            Bar("fps ≥ 0.985 × untracked", lambda of: of.ratio("fps", OURS, UNTRACKED), 0.985, at_least=True),
            Bar("fps next to a bare sender, × untracked", lambda of: of.ratio("fps", BARE, UNTRACKED)),
            Bar("time inside hooks, % of `learn()`", lambda of: of.median(TIMED, "hooks_percent")),
        ),
    )


ROW = Row(
    name="3",
    title="PPO on CartPole",
    method=(
        "50 000 steps, an update and a dump of the logger every 512 steps (98 dumps), ten epochs in batches of 256, "
        "one torch thread, no console output. This package also records every episode. `log_model=False`. "
        "On most virtual machines two cores are two threads of one physical core, so anything on the other thread "
        "slows down training: here delivery and the server. The time inside hooks does not include that; the bare "
        "sender of row 2 next to an untracked training run does."
    ),
    groups=(_group("1 environment", 1, 512), _group("16 environments", 16, 32)),
)
