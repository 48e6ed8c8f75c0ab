"""Commands about delivery: what is not in the store yet, and how to bring it there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec
from rich.console import Console
from rich.live import Live

from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import PendingRun, pending_run, pending_runs, unreadable_folders
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._values.credentials import CREDENTIALS, same_place
from tracking_callbacks._values.secrets import MASK, mask_uri
from tracking_callbacks._values.store_uri import real_uri
from tracking_callbacks._writing.launch import start_sync
from tracking_callbacks.cli.common import (
    AS_JSON,
    PATHS,
    count_text,
    duration_text,
    roots_at,
    short_name,
    show_table,
    table,
)
from tracking_callbacks.errors import ConfigError

__all__ = ["RunRow", "status", "sync"]

_POLL_SECONDS = 0.2
_WATCH_SECONDS = 1.0
_STILL_SECONDS = 2.0
# https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")
_HEADER = ("RUN", "STORE", "PENDING", "LAST RECORD", "TRAINER", "DELIVERY", "LAST ERROR")


class RunRow(msgspec.Struct, frozen=True):
    """A run that is not fully delivered, as ``tracking-callbacks status --json`` prints it.

    Attributes:
        name: Its name, else its id or key.
        run_key: Its folder in the journal root.
        run_id: The store's id; null while it is unknown.
        store: Tracking URI without credentials.
        experiment: Name of its experiment.
        pending: Entries that the store has not acknowledged.
        last_record_seconds: Seconds since the last record was written.
        trainer: ``running`` or ``gone``.
        delivery: ``under way`` or ``none``.
        left: The store lacks something that the run holds so far.
        last_error: What last stopped delivery; empty if nothing did.
    """

    name: str
    run_key: str
    run_id: str | None
    store: str
    experiment: str
    pending: int
    last_record_seconds: float
    trainer: str
    delivery: str
    left: bool
    last_error: str

    @classmethod
    def of(cls, run: PendingRun) -> RunRow:
        """Return the row of a run."""
        return cls(
            name=run.name,
            run_key=run.folder.run_key,
            run_id=run.run_id or None,
            store=run.opened.store.uri,
            experiment=run.opened.experiment,
            pending=run.pending,
            last_record_seconds=round(run.age, 1),
            trainer="running" if run.alive else "gone",
            delivery="under way" if run.held else "none",
            left=run.left,
            last_error=run.last_error,
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells."""
        age = f"{duration_text(self.last_record_seconds)} ago"
        return (
            short_name(self.name),
            self.store,
            str(self.pending),
            age,
            self.trainer,
            self.delivery,
            self.last_error or "-",
        )


@click.command()
@PATHS
@click.option("--watch", is_flag=True, help="Show it again every second, until everything is delivered.")
@AS_JSON
def status(paths: tuple[Path, ...], watch: bool, as_json: bool) -> None:
    """Show the runs that are not delivered yet.

    PATHS are journal folders or the projects that contain them; the default is the current project. The exit code is 0
    if everything is delivered that runs hold so far, and 1 if something is left.
    """
    roots = roots_at(paths)
    if watch:
        _watch(roots, quiet=as_json)
    runs = [run for root in roots for run in pending_runs(root)]
    rows = [RunRow.of(run) for run in runs]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        sys.exit(1 if any(row.left for row in rows) else 0)
    if rows:
        show_table([_HEADER, *(row.cells() for row in rows)])
    _conclude(roots, runs)


def _watch(roots: Sequence[JournalRoot], *, quiet: bool) -> None:
    """Show the runs until none is left: in place on a terminal, elsewhere again after each change of more than ages."""
    console = Console(markup=False, highlight=False)
    shown: list[RunRow] = []
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:
        while rows := [RunRow.of(run) for root in roots for run in pending_runs(root)]:
            cells = [_HEADER, *(row.cells() for row in rows)]
            ageless = [msgspec.structs.replace(row, last_record_seconds=0.0) for row in rows]
            if live is not None:
                live.update(table(cells), refresh=True)
            elif not quiet and ageless != shown:
                show_table(cells)
            shown = ageless
            time.sleep(_WATCH_SECONDS)


@click.command()
@PATHS
@click.option(
    "--tracking-uri",
    help="Deliver to this store instead of the one that the runs were created for.",
)
@click.option(
    "--stall-timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Give up after this many seconds without progress.",
)
def sync(paths: tuple[Path, ...], tracking_uri: str | None, stall_timeout: float) -> None:
    """Deliver what is left in journals, and wait until it has arrived.

    PATHS are journal folders or the projects that contain them; the default is the current project. Runs that the
    delivery process of a living trainer delivers are left to it; if that cannot deliver them, this command takes over.
    The exit code is 0 if everything is delivered that runs hold so far, and 1 if something is left.
    """
    roots = roots_at(paths)
    reasons: dict[Path, str] = {}
    for root in roots:
        waiting = [run for run in pending_runs(root) if run.left and not run.in_good_hands]
        if waiting:
            reasons |= _deliver(root, waiting, tracking_uri, stall_timeout)
    runs = [run for root in roots for run in pending_runs(root)]
    for run in runs:
        if run.left and not run.in_good_hands:
            why = reasons.get(run.folder.path) or run.last_error or _stalled(run, stall_timeout)
            click.echo(f"{short_name(run.name)}: {run.pending} left; {why}", err=True)
    _conclude(roots, runs)


def _stalled(run: PendingRun, seconds: float) -> str:
    if run.held:
        return f"another process delivers it, and nothing has moved for {seconds:.0f} s"
    return f"nothing has moved for {seconds:.0f} s; {run.folder.path.parent / 'delivery.log'} may say more"


def _conclude(roots: Sequence[JournalRoot], runs: Sequence[PendingRun]) -> None:
    """Say what the runs under `roots` still wait for, and exit with 0 if that is nothing."""
    unreadable = [folder for root in roots for folder in unreadable_folders(root)]
    for folder in unreadable:
        click.echo(f"{folder}: no journal in it can be read; it is kept", err=True)
    for root in roots:
        if kept := root.all_rejected():
            click.echo(f"Files of {count_text(len(kept), 'run')} that a store refused are kept in {kept[0].parent}")
    left = [run for run in runs if run.left]
    if own := sum(run.in_good_hands for run in left):
        click.echo(
            f"{count_text(own, 'run is', 'runs are')} being delivered by {'its' if own == 1 else 'their'} own process"
        )
    if left or unreadable:
        sys.exit(1)
    still_open = f" so far; {count_text(len(runs), 'run is', 'runs are')} still open" if runs else ""
    click.echo(f"Everything is delivered{still_open}.")


def _deliver(
    root: JournalRoot, waiting: list[PendingRun], tracking_uri: str | None, stall_timeout: float
) -> dict[Path, str]:
    """Deliver the runs of one root, store by store, each store with a separate process.

    Returns:
        Why runs could not even be tried, by their folders.
    """
    total = sum(run.pending for run in waiting)
    reasons: dict[Path, str] = {}
    with click.progressbar(
        length=max(total, 1), label=f"Delivering {count_text(len(waiting), 'run')}", file=sys.stderr
    ) as bar:
        shown = 0
        for store in {run.opened.store for run in waiting}:
            try:
                process = _start(root, store, tracking_uri, stall_timeout)
            except ConfigError as error:
                reasons |= {run.folder.path: str(error) for run in waiting if run.opened.store == store}
                continue
            errors = _Errors([run for run in waiting if run.opened.store == store])
            try:
                while process.poll() is None:
                    time.sleep(_POLL_SECONDS)
                    remaining = _remaining(waiting)
                    shown = _advance(bar.update, total - sum(run.pending for run in remaining), shown)
                    errors.show(remaining)
            finally:
                if process.poll() is None:  # interrupted: what is acknowledged stays acknowledged
                    process.kill()
        _advance(bar.update, total, shown)
    return reasons


class _Errors:
    """Shows what stops the delivery of some runs: once, and again when it changes."""

    def __init__(self, runs: Sequence[PendingRun]) -> None:
        self._written = {run.folder.path: run.folder.state_written() for run in runs}
        self._pending = -1
        self._moved = 0.0
        self._shown: set[str] = set()

    def show(self, runs: Sequence[PendingRun]) -> None:
        """Show the errors of those of `runs` that are meant; an error of an earlier try only if nothing moves."""
        own = [run for run in runs if run.folder.path in self._written]
        if (pending := sum(run.pending for run in own)) != self._pending:
            self._pending, self._moved = pending, time.monotonic()
        still = time.monotonic() - self._moved > _STILL_SECONDS
        new = [run for run in own if still or run.folder.state_written() != self._written[run.folder.path]]
        errors = {run.last_error for run in new if run.last_error}
        if errors and errors != self._shown:
            self._shown = errors
            line = "\n" if sys.stderr.isatty() else ""  # below the bar
            click.echo(f"{line}not delivered yet: {'; '.join(sorted(errors))}", err=True)


def _start(
    root: JournalRoot, store: StoreAddress, tracking_uri: str | None, stall_timeout: float
) -> subprocess.Popen[bytes]:
    """Start the delivery to one store; the credentials in the environment are sent to hosts that the user has named.

    Raises:
        ConfigError: The store cannot be reached without credentials that are not given.
    """
    uri = real_uri(tracking_uri) if tracking_uri else _reachable_uri(store.uri)
    registry_uri = None if store.registry_uri is None else _reachable_uri(store.registry_uri, REGISTRY_URI_VARIABLE)
    named = [tracking_uri, _from_environment(TRACKING_URI_VARIABLE), _from_environment(REGISTRY_URI_VARIABLE)]
    withheld: list[str] = []
    for place in filter(None, (uri, registry_uri)):
        if urlsplit(place).hostname and not any(name and same_place(name, place) for name in named):
            withheld = sorted(CREDENTIALS & os.environ.keys())
            if _CREDENTIALS_FILE.expanduser().exists() and place.startswith("http"):
                raise ConfigError(
                    f"only the journal names {mask_uri(place)}, and MLflow would send it what {_CREDENTIALS_FILE} "
                    f"holds; if it may have that, name it with --tracking-uri or {TRACKING_URI_VARIABLE}",
                    setting="tracking_uri",
                )
            if withheld:
                click.echo(
                    f"{', '.join(withheld)}: not sent to {mask_uri(place)}, which only the journal names; if it may "
                    f"have that, name it with --tracking-uri or {TRACKING_URI_VARIABLE}",
                    err=True,
                )
    return start_sync(root.path, store, uri, registry_uri, stall_timeout, withheld)


def _advance(update: Callable[[int], None], done: int, shown: int) -> int:
    update(max(done - shown, 0))
    return max(done, shown)


def _remaining(runs: list[PendingRun]) -> list[PendingRun]:
    return [now for run in runs if (now := pending_run(run.folder)) is not None]


def _from_environment(variable: str) -> str:
    return real_uri(os.environ.get(variable, ""))


def _reachable_uri(masked: str, variable: str = TRACKING_URI_VARIABLE) -> str:
    """Return a masked URI with its credentials, which the journal does not hold, taken from the environment."""
    now = _from_environment(variable)
    if now and mask_uri(now) == masked:
        return now
    uri = masked.replace(f"{MASK}@", "", 1)
    if MASK in uri or (uri != masked and not uri.startswith("http")):
        option = "--tracking-uri or " if variable == TRACKING_URI_VARIABLE else ""
        expected = f"give {option}{variable}"
        raise ConfigError(
            f"{masked} needs credentials, which the journal does not keep; {expected}", setting="tracking_uri"
        )
    return uri
