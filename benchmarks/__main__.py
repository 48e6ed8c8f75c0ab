"""Measure this package against its peers, and write benchmarks/RESULTS.md.

make bench                                    # everything; takes about two hours
.venv-bench/bin/python -m benchmarks --rows 1,4
.venv-bench/bin/python -m benchmarks --rows 2 --quick    # small sizes to try the code; writes nothing
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from datetime import UTC, datetime

from benchmarks import report, surroundings
from benchmarks.bench import running_bench
from benchmarks.comparison import measure
from benchmarks.rows import ROWS


def _rows(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return names


def main() -> int:
    """Measure the requested rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_rows, default=list(ROWS), help=f"comma-separated; available: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each contender (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes to try the code; only prints")
    parser.add_argument("--render", action="store_true", help="only rewrite RESULTS.md from benchmarks/results/")
    chosen = parser.parse_args()
    if chosen.render:
        report.write(ROWS)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server or training process may outlive this one
    for name in chosen.rows:
        row = ROWS[name]
        _print_line(f"row {name}: {row.title}")
        began = time.monotonic()
        with running_bench(quick=chosen.quick) as bench:
            groups = {group.title: measure(group, bench, chosen.rounds, _print_line) for group in row.groups}
        result = report.Result(
            row=name,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            commit=surroundings.commit(),
            rounds=chosen.rounds,
            minutes=round((time.monotonic() - began) / 60, 1),
            machine=surroundings.machine(),
            versions=surroundings.versions(),
            groups=groups,
        )
        _print_line(report.section(row, result))
        if not chosen.quick:
            report.keep(result)
            report.write(ROWS)
    return 0


def _print_line(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
