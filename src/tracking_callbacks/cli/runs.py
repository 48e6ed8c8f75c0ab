"""Commands about one run, answered from the journal alone, so that they work while the store is away."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import click
import msgspec

from tracking_callbacks._journal.contents import read_contents
from tracking_callbacks._journal.frames import read_chunk
from tracking_callbacks._journal.layout import JournalRoot, RunFolder
from tracking_callbacks._journal.pending import PendingRun, pending_run, pending_runs
from tracking_callbacks._journal.records import Metrics, RunEnded
from tracking_callbacks._values.store_uri import run_link
from tracking_callbacks.cli.common import AS_JSON, count_text, roots_at, short_name
from tracking_callbacks.cli.delivering import RunRow

__all__ = ["RunDetails", "show", "tail"]

_POLL_SECONDS = 0.2
_SHOWN_METRICS = 40
_RUN = click.argument("run", required=False)
_PATH = click.option(
    "--journal", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Journal folder, or its project."
)


class RunDetails(msgspec.Struct, frozen=True):
    """A run that is not fully delivered, as ``tracking-callbacks show --json`` prints it.

    Attributes:
        run: Its row in ``status``.
        status: ``RUNNING`` until it has ended, then ``FINISHED``, ``FAILED`` or ``KILLED``. ``RUNNING`` also for a run
            whose trainer is gone: delivery will make it ``KILLED``.
        started: When it began, in ISO 8601.
        error: The last line of the traceback that has ended it.
        params: Number of params.
        points: Number of metric points.
        metrics: Step and value of the last point of each metric; NaN and the infinities are texts.
        models: Names of the models that were logged.
        versions: Versions of registered models so far.
        last_error: What stops delivery; empty if nothing does.
    """

    run: RunRow
    status: str
    started: str
    error: str
    params: int
    points: int
    metrics: dict[str, tuple[int, float | str]]
    models: list[str]
    versions: list[str]


@click.command()
@_RUN
@_PATH
@AS_JSON
def show(run: str | None, journal: Path | None, as_json: bool) -> None:
    """Show what a run holds: status, last figures, errors, what is delivered.

    RUN is its name, or the beginning of its id or key; the default is the newest run that is not fully delivered.
    """
    found = _find(run, journal)
    state = found.folder.read_state()
    contents = read_contents(found.folder)
    details = RunDetails(
        run=RunRow.of(found),
        status=contents.status,
        started=datetime.fromtimestamp(contents.started / 1000).astimezone().isoformat(timespec="seconds"),
        error=contents.error,
        params=len(contents.params),
        points=contents.points,
        metrics={name: (step, _number(value)) for name, (step, value) in sorted(contents.metrics.items())},
        models=contents.models,
        versions=[] if state is None else list(state.versions.values()),
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(details), indent=2))
        return
    row = details.run
    trainer = "" if row.trainer == "running" or details.status != "RUNNING" else ", its trainer is gone"
    click.echo(f"{short_name(row.name)}: {details.status}{trainer}")
    click.echo(f"  started    {details.started}")
    click.echo(f"  run id     {row.run_id or 'not known yet'}")
    click.echo(f"  store      {row.store}, experiment {row.experiment}")
    click.echo(f"  delivery   {row.delivery}, {count_text(row.pending, 'record')} pending")
    for what, text in (("error", details.error), ("delivery's last error", row.last_error)):
        if text:
            click.echo(f"  {what}: {text}")
    points = f"{count_text(details.points, 'point')} of {count_text(len(details.metrics), 'metric')}"
    click.echo(f"  {count_text(details.params, 'param')}, {points}")
    width = max((len(name) for name in details.metrics), default=0)
    for name, (step, value) in list(details.metrics.items())[:_SHOWN_METRICS]:
        figure = value if isinstance(value, str) else f"{value:.6g}"
        click.echo(f"    {name.ljust(width)}  {figure:>12}  at step {step}")
    if len(details.metrics) > _SHOWN_METRICS:
        click.echo(f"    and {len(details.metrics) - _SHOWN_METRICS} more; --json has all of them")


@click.command()
@_RUN
@_PATH
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(min=0), help="Lines to begin with.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on until the run ends.")
def tail(run: str | None, journal: Path | None, lines: int, follow: bool) -> None:
    """Show the last lines of a run's log and its last points, and follow them until the run ends.

    RUN is its name, or the beginning of its id or key; the default is the newest run that is not fully delivered.
    """
    found = _find(run, journal)
    follower = _Follower(found.folder)
    for line in list(follower.lines())[-lines:] if lines else follower.lines():
        click.echo(line)
    while follow and not follower.ended:
        time.sleep(_POLL_SECONDS)
        for line in follower.lines():
            click.echo(line)
        now = pending_run(found.folder)
        if now is None or not now.alive:
            break
    if follow:
        click.echo(f"{short_name(found.name)}: {follower.status or 'its trainer is gone'}", err=True)


class _Follower:
    """Reads what has come to a run's log and journals since the last look."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self.status = ""

    @property
    def ended(self) -> bool:
        """Whether the newest session has ended."""
        return bool(self.status)

    def lines(self) -> Iterator[str]:
        """Yield the new lines: those of the log, then a line for each step."""
        live = os.walk(self._folder.path / "live")  # unlike rglob, it does not mind that delivery removes the folder
        for log in sorted(Path(folder, name) for folder, _, names in live for name in names if name.endswith(".log")):
            yield from self._log_lines(log)
        for journal in self._folder.journals():
            with contextlib.suppress(FileNotFoundError):  # it has just been delivered
                yield from self._point_lines(journal)

    def _log_lines(self, log: Path) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            start = min(self._offsets.get(log, 0), log.stat().st_size)  # bars may have taken lines back
            file.seek(start)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._offsets[log] = start + len(whole)
            yield from whole.decode(errors="replace").splitlines()

    def _point_lines(self, journal: Path) -> Iterator[str]:
        at_end = False
        while not at_end:
            chunk = read_chunk(journal, self._offsets.get(journal, 0), complete=False)
            for record, _ in chunk.records:
                if isinstance(record, Metrics):
                    values = "  ".join(f"{name} {value:.6g}" for name, value in record.metrics.items())
                    yield f"step {record.step}  {values}"
                elif isinstance(record, RunEnded):
                    self.status = record.status or ""
            self._offsets[journal] = chunk.end
            at_end = chunk.at_end or not chunk.records


def _find(run: str | None, journal: Path | None) -> PendingRun:
    """Return the run that the user names.

    Raises:
        ClickException: There is none, or several.
    """
    roots: list[JournalRoot] = roots_at([journal] if journal else [])
    runs = [one for root in roots for one in pending_runs(root)]
    if run is not None:
        named = [one for one in runs if run == one.name]
        runs = named or [one for one in runs if any(key.startswith(run) for key in _keys(one))]
    if not runs:
        what = "no run waits for delivery" if run is None else f"no run that waits for delivery is called {run!r}"
        places = ", ".join(str(root.path) for root in roots)
        raise click.ClickException(f"{what} in {places}; {_delivered_text(roots, run)}")
    if run is not None and len(runs) > 1:
        keys = ", ".join(one.folder.run_key for one in runs)
        raise click.ClickException(f"{run!r} names {len(runs)} runs; give the beginning of a key: {keys}")
    return runs[-1]


def _delivered_text(roots: Sequence[JournalRoot], run: str | None) -> str:
    """Return where the delivered run is that the user names; without such a one, where the last one is."""
    delivered = [one for root in roots for one in root.delivered()]
    if not delivered:
        return "delivered runs are in MLflow: tracking-callbacks ui"
    named = [
        (key, state)
        for key, state in delivered
        if run is not None
        and (run == state.run_name or any(known.startswith(run) for known in (key, state.run_id or "")))
    ]
    _, state = (named or delivered)[0]
    name = state.run_name or f"run {state.run_id}"
    page = run_link(state.store, state.experiment_id, state.run_id) or "tracking-callbacks ui"
    return f"{name} is {'delivered' if named else 'the last that was delivered'}: {page}"


def _keys(run: PendingRun) -> tuple[str, ...]:
    return (run.folder.run_key, run.run_id) if run.run_id else (run.folder.run_key,)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
