"""The command line: shows what is pending, delivers it, opens the MLflow UI."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from tracking_callbacks import __version__
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import PendingRun, journal_root_at, pending_run, pending_runs
from tracking_callbacks._journal.records import Store
from tracking_callbacks._values.secrets import MASK, mask_uri
from tracking_callbacks._writing.launch import start_sync
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.settings import Settings, resolve_settings

__all__ = ["main"]

_POLL_SECONDS = 0.2
_PATHS = click.argument("paths", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look after the MLflow runs of tracking_callbacks.

    Training writes to a journal, and a delivery process sends the journal to MLflow automatically. These commands show
    what is not delivered yet, and deliver it if no delivery process is left: after the machine crashed, or for offline
    runs.
    """


@main.command()
@_PATHS
def status(paths: tuple[Path, ...]) -> None:
    """Show the runs that are not delivered yet.

    PATHS are journal folders or the projects that contain them; the default is the current project. The exit code is 0
    if everything is delivered and 1 if something is left.
    """
    runs = [run for root in _roots(paths) for run in pending_runs(root)]
    if not runs:
        click.echo("Everything is delivered.")
        return
    rows = [("RUN", "STORE", "PENDING", "LAST RECORD", "TRAINER", "LAST ERROR")]
    rows += [
        (
            run.opened.run_name or run.run_id or run.folder.run_key,
            run.opened.store.uri,
            str(run.pending),
            f"{_duration(run.age)} ago",
            "running" if run.alive else "gone",
            run.last_error or "-",
        )
        for run in runs
    ]
    click.echo(_table(rows))
    sys.exit(1)


@main.command()
@_PATHS
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

    PATHS are journal folders or the projects that contain them; the default is the current project. Runs that are still
    training are skipped, because they have their own delivery process. The exit code is 0 if everything is delivered
    and 1 if something is left.
    """
    left: list[PendingRun] = []
    for root in _roots(paths):
        waiting = [run for run in pending_runs(root) if not run.alive]
        if waiting:
            left += _deliver(root, waiting, tracking_uri, stall_timeout)
    for run in left:
        name = run.opened.run_name or run.folder.run_key
        click.echo(f"{name}: {run.pending} left; {run.last_error or 'the store did not answer'}", err=True)
    if left:
        sys.exit(1)
    click.echo("Everything is delivered.")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="YAML file with the tracking URI.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ui(config: str | None, arguments: tuple[str, ...]) -> None:
    """Open the MLflow UI on the store that this project's trackers use.

    ARGUMENTS are passed to `mlflow ui`, for example `--port 5001`.
    """
    settings = _settings(config)
    if settings.tracking_uri.startswith(("http://", "https://")):
        click.echo(f"The runs are on a server: open {settings.masked_uri}")
        return
    environment = os.environ | {TRACKING_URI_VARIABLE: settings.tracking_uri, "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", settings.tracking_uri, *arguments]
    try:
        sys.exit(subprocess.run(command, cwd=settings.working_folder, env=environment, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(0)


def _roots(paths: Iterable[Path]) -> list[JournalRoot]:
    given = [journal_root_at(path.absolute()) for path in paths]
    return given or [JournalRoot(_settings(None).journal_root)]


def _settings(config: str | None) -> Settings:
    try:
        return resolve_settings(config=config)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _deliver(
    root: JournalRoot, waiting: list[PendingRun], tracking_uri: str | None, stall_timeout: float
) -> list[PendingRun]:
    """Deliver the runs of one root, store by store, each store with a separate process; return what is left."""
    total = sum(run.pending for run in waiting)
    with click.progressbar(length=max(total, 1), label=f"Delivering {len(waiting)} runs", file=sys.stderr) as bar:
        shown = 0
        for store in {run.opened.store for run in waiting}:
            process = start_sync(
                root.path, store, tracking_uri or _reachable_uri(store.uri), _reachable_registry(store), stall_timeout
            )
            try:
                while process.poll() is None:
                    time.sleep(_POLL_SECONDS)
                    shown = _advance(bar.update, total - sum(run.pending for run in _remaining(waiting)), shown)
            finally:
                if process.poll() is None:  # interrupted: what is acknowledged stays acknowledged
                    process.kill()
        _advance(bar.update, total, shown)
    return _remaining(waiting)


def _advance(update: Callable[[int], None], done: int, shown: int) -> int:
    update(max(done - shown, 0))
    return max(done, shown)


def _remaining(runs: list[PendingRun]) -> list[PendingRun]:
    return [now for run in runs if (now := pending_run(run.folder)) is not None]


def _reachable_uri(masked: str, variable: str = TRACKING_URI_VARIABLE) -> str:
    """Return a masked URI with its credentials, which the journal does not hold, taken from the environment."""
    now = os.environ.get(variable, "")
    if now and mask_uri(now) == masked:
        return now
    uri = masked.replace(f"{MASK}@", "", 1)
    if MASK in uri or (uri != masked and not uri.startswith("http")):
        option = "--tracking-uri or " if variable == TRACKING_URI_VARIABLE else ""
        raise click.UsageError(f"{masked} needs credentials, which the journal does not keep; give {option}{variable}")
    return uri


def _reachable_registry(store: Store) -> str | None:
    return None if store.registry_uri is None else _reachable_uri(store.registry_uri, REGISTRY_URI_VARIABLE)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


if __name__ == "__main__":
    main()
