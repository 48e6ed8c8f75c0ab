"""The command line: shows what is pending, delivers it, opens the MLflow UI."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from tracking_callbacks import __version__
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE, VersionRow
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import (
    PendingRun,
    journal_root_at,
    pending_run,
    pending_runs,
    unreadable_folders,
)
from tracking_callbacks._journal.records import StoreAddress
from tracking_callbacks._values.credentials import CREDENTIALS, same_place
from tracking_callbacks._values.secrets import MASK, mask_uri
from tracking_callbacks._writing.launch import ask_registry, start_sync
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.settings import Settings, resolve_settings

__all__ = ["main"]

_POLL_SECONDS = 0.2
# https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")
_CONFIG = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="YAML file with the tracking URI."
)
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
    if everything is delivered that runs hold so far, and 1 if something is left.
    """
    roots = _roots(paths)
    runs = [run for root in roots for run in pending_runs(root)]
    rows = [("RUN", "STORE", "PENDING", "LAST RECORD", "TRAINER", "DELIVERY", "LAST ERROR")]
    rows += [
        (
            run.name,
            run.opened.store.uri,
            str(run.pending),
            f"{_duration(run.age)} ago",
            "running" if run.alive else "gone",
            "under way" if run.held else "none",
            run.last_error or "-",
        )
        for run in runs
    ]
    if runs:
        click.echo(_table(rows))
    _conclude(roots, runs)


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

    PATHS are journal folders or the projects that contain them; the default is the current project. Runs that the
    delivery process of a living trainer delivers are left to it; if that cannot deliver them, this command takes over.
    The exit code is 0 if everything is delivered that runs hold so far, and 1 if something is left.
    """
    roots = _roots(paths)
    reasons: dict[Path, str] = {}
    for root in roots:
        waiting = [run for run in pending_runs(root) if run.left and not run.in_good_hands]
        if waiting:
            reasons |= _deliver(root, waiting, tracking_uri, stall_timeout)
    runs = [run for root in roots for run in pending_runs(root)]
    for run in runs:
        if run.left and not run.in_good_hands:
            why = reasons.get(run.folder.path) or run.last_error or _stalled(run, stall_timeout)
            click.echo(f"{run.name}: {run.pending} left; {why}", err=True)
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
            click.echo(f"Files of {_count(len(kept), 'run')} that a store refused are kept in {kept[0].parent}")
    left = [run for run in runs if run.left]
    if own := sum(run.in_good_hands for run in left):
        click.echo(
            f"{_count(own, 'run is', 'runs are')} being delivered by {'its' if own == 1 else 'their'} own process"
        )
    if left or unreadable:
        sys.exit(1)
    still_open = f" so far; {_count(len(runs), 'run is', 'runs are')} still open" if runs else ""
    click.echo(f"Everything is delivered{still_open}.")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@main.command(context_settings={"ignore_unknown_options": True})
@_CONFIG
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


@main.command()
@click.argument("name", required=False)
@_CONFIG
@click.option("--tracking-uri", help="The store whose registry is asked, instead of this project's.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as a JSON list instead of a table.")
def models(name: str | None, config: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Show the versions of registered models, and why one of them is champion.

    NAME is a registered model; the default is all of them. Each row has the version's aliases, the figure that it was
    compared by, the digest of the data behind that, and what came of the comparison.
    """
    found = ask_registry(_settings(config, tracking_uri), name)
    if found.returncode:
        raise click.ClickException(found.stderr.decode(errors="replace").strip())
    if as_json:
        click.echo(msgspec.json.format(found.stdout, indent=2))
        return
    versions = msgspec.json.decode(found.stdout, type=list[VersionRow])
    rows = [("MODEL", "VERSION", "ALIASES", "METRIC", "FIGURE", "DATA", "OUTCOME")]
    rows += [
        (
            one.model,
            one.version,
            ", ".join(one.aliases) or "-",
            one.metric or "-",
            "-" if one.figure is None else f"{one.figure:.6g}",
            one.data or "-",
            one.outcome or "-",
        )
        for one in versions
    ]
    click.echo(_table(rows) if versions else "No model is registered.")


def _roots(paths: Iterable[Path]) -> list[JournalRoot]:
    given = [journal_root_at(path.absolute()) for path in paths]
    roots = given or [JournalRoot(_settings(None).journal_root)]
    for root in roots:
        try:
            root.check_private()
        except PermissionError as error:
            raise click.ClickException(f"{error.filename} is not used: {error.strerror}") from error
    return roots


def _settings(config: str | None, tracking_uri: str | None = None) -> Settings:
    try:
        return resolve_settings(tracking_uri, config=config)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


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
        length=max(total, 1), label=f"Delivering {_count(len(waiting), 'run')}", file=sys.stderr
    ) as bar:
        shown = 0
        for store in {run.opened.store for run in waiting}:
            try:
                process = _start(root, store, tracking_uri, stall_timeout)
            except ConfigError as error:
                reasons |= {run.folder.path: str(error) for run in waiting if run.opened.store == store}
                continue
            try:
                while process.poll() is None:
                    time.sleep(_POLL_SECONDS)
                    shown = _advance(bar.update, total - sum(run.pending for run in _remaining(waiting)), shown)
            finally:
                if process.poll() is None:  # interrupted: what is acknowledged stays acknowledged
                    process.kill()
        _advance(bar.update, total, shown)
    return reasons


def _start(
    root: JournalRoot, store: StoreAddress, tracking_uri: str | None, stall_timeout: float
) -> subprocess.Popen[bytes]:
    """Start the delivery to one store; the credentials in the environment are sent to hosts that the user has named.

    Raises:
        ConfigError: The store cannot be reached without credentials that are not given.
    """
    uri = tracking_uri or _reachable_uri(store.uri)
    registry_uri = None if store.registry_uri is None else _reachable_uri(store.registry_uri, REGISTRY_URI_VARIABLE)
    named = [tracking_uri, os.environ.get(TRACKING_URI_VARIABLE), os.environ.get(REGISTRY_URI_VARIABLE)]
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


def _reachable_uri(masked: str, variable: str = TRACKING_URI_VARIABLE) -> str:
    """Return a masked URI with its credentials, which the journal does not hold, taken from the environment."""
    now = os.environ.get(variable, "")
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
