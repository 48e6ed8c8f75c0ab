"""Keeps the numbers of each row in a file, and writes RESULTS.md from these files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.comparison import Bar, Column, Group, Row, Samples

__all__ = ["Result", "keep", "section", "write"]

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"

HEAD = """# Results

This package compared with its alternatives on the same work, in one run. `make bench` writes this page and keeps every
number, round by round, in `benchmarks/results/`.

The contenders of a table take turns (A B C A B C …), each in a fresh process. No measurement starts while an earlier
one is still being delivered. A cell is the median of the rounds, with the minimum and the maximum in brackets. CPU is
the time of the training thread (`time.thread_time`), which other programs on the machine do not lengthen.
"""

REPEAT = """## How to repeat

```console
make bench                                                 # everything: two hours on an otherwise idle machine
make bench ROWS=1,4                                        # some rows; the others keep their numbers
.venv-bench/bin/python -m benchmarks --rows 2 --rounds 9   # the same by hand, after `make bench` once
.venv-bench/bin/python -m benchmarks --quick               # small sizes to try the code; writes nothing
```
"""


class Result(msgspec.Struct):
    """The numbers of one row, and where they come from."""

    row: str
    date: str
    commit: str
    rounds: int
    minutes: float
    machine: dict[str, str]
    versions: dict[str, str]
    groups: dict[str, dict[str, dict[str, list[float]]]]


def keep(result: Result) -> None:
    """Replace the kept numbers of the row."""
    path = FOLDER / "results" / f"row-{result.row}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(result)), indent=1) + b"\n")


def write(rows: Mapping[str, Row]) -> None:
    """Write RESULTS.md from the kept numbers of all rows."""
    found = {}
    for name in rows:
        path = FOLDER / "results" / f"row-{name}.json"
        if path.exists():
            found[name] = msgspec.json.decode(path.read_bytes(), type=Result)
    sections = [section(rows[name], result) for name, result in found.items()]
    where = _surroundings(found.values())
    RESULTS.write_text("\n".join([HEAD, where, _summary(rows, found), REPEAT, *sections]), encoding="utf-8")


def section(row: Row, result: Result) -> str:
    """Return the report on one row, in Markdown."""
    lines = [f"## Row {row.name}: {row.title}", "", row.method, ""]
    for group, samples in _measured(row, result):
        lines += [f"### {group.title[0].upper()}{group.title[1:]}", ""]
        lines += _table(
            ["", *(column.head for column in group.columns)],
            (
                [contender, *(_cell(samples, contender, column) for column in group.columns)]
                for contender in samples.taken
            ),
        )
        if samples.rounds() != result.rounds:
            lines += ["", f"Rounds of this table: {samples.rounds()}."]
        if group.bars:
            lines += ["", *_table(["bar", "measured", "met"], (_judged(bar, samples) for bar in group.bars))]
        lines.append("")
    lines += [
        f"Measured on {result.date} at commit {result.commit}, rounds: {result.rounds}, minutes: {result.minutes}. "
        f"To repeat: `make bench ROWS={row.name}`.",
        "",
    ]
    return "\n".join(lines)


def _measured(row: Row, result: Result) -> list[tuple[Group, Samples]]:
    """Return the groups with their numbers; skip groups whose title is newer than the measurement."""
    return [(group, Samples(result.groups[group.title])) for group in row.groups if group.title in result.groups]


def _summary(rows: Mapping[str, Row], found: Mapping[str, Result]) -> str:
    lines = []
    for name, result in found.items():
        for group, samples in _measured(rows[name], result):
            lines += [[name, group.title, *_judged(bar, samples)] for bar in group.bars]
    return "\n".join(["## The bars", "", *_table(["row", "work", "bar", "measured", "met"], lines), ""])


def _surroundings(results: Iterable[Result]) -> str:
    lines = ["## Where", ""]
    seen: dict[str, list[str]] = {}
    for result in results:
        facts = ", ".join(f"{name}: {text}" for name, text in result.machine.items())
        versions = ", ".join(f"{name} {text}" for name, text in result.versions.items())
        seen.setdefault(f"{result.date}. {facts}. {versions}.", []).append(result.row)
    lines += [f"- Rows {', '.join(names)}: {facts}" for facts, names in seen.items()]
    return "\n".join([*lines, ""])


def _cell(samples: Samples, contender: str, column: Column) -> str:
    values = samples.values(contender, column.figure)
    if not values:
        return "–"
    shown = [f"{value:.{column.digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def _judged(bar: Bar, samples: Samples) -> list[str]:
    value = bar.value(samples)
    if math.isnan(value):
        return [bar.what, "–", "not measured yet"]
    met = bar.met(value)
    return [bar.what, f"{value:.3g}", "no bar" if met is None else "yes" if met else "**no**"]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    align = ["---" if column == 0 else "---:" for column in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, align, *lines)]


def _rounded(result: Result) -> Result:
    groups = {
        title: {
            contender: {figure: [float(f"{value:.5g}") for value in values] for figure, values in figures.items()}
            for contender, figures in taken.items()
        }
        for title, taken in result.groups.items()
    }
    return msgspec.structs.replace(result, groups=groups)
