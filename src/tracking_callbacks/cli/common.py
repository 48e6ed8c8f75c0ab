"""What several commands share: their arguments, the journal roots, tables, durations."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import journal_root_at
from tracking_callbacks._values.store_uri import local_path
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.settings import Settings, resolve_settings

__all__ = [
    "AS_JSON",
    "CONFIG",
    "PATHS",
    "SettingsError",
    "absent_store",
    "count_text",
    "duration_text",
    "roots_at",
    "settings_of",
    "short_name",
    "show_table",
    "table",
]

_ID = re.compile(r"[0-9a-f]{32}")

CONFIG = click.option("--config", help="YAML file with the tracking URI.")
PATHS = click.argument("paths", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, whose fields docs/command-line.md lists.")


class SettingsError(click.ClickException):
    """Settings that cannot be used; exits as other wrong use does, because 1 says that something is left."""

    exit_code = 2


def roots_at(paths: Iterable[Path]) -> list[JournalRoot]:
    """Return the journal roots at `paths`; without any, that of the current project.

    Raises:
        ClickException: Another user could have changed one of them.
    """
    given = [journal_root_at(path.absolute()) for path in paths]
    roots = given or [JournalRoot(settings_of(None).journal_root)]
    for root in roots:
        try:
            root.check_private()
        except PermissionError as error:
            raise click.ClickException(f"{error.filename} is not used: {error.strerror}") from error
    return roots


def settings_of(config: str | None, tracking_uri: str | None = None) -> Settings:
    """Return the settings of the current project's trackers.

    Raises:
        SettingsError: They cannot be used.
    """
    try:
        return resolve_settings(tracking_uri, config=config)
    except ConfigError as error:
        raise SettingsError(str(error)) from error


def absent_store(uri: str) -> str:
    """Return that the local store at `uri` does not exist yet, empty for any other: who opens it would create it."""
    path = local_path(uri)
    return f"{path} does not exist yet; the first run creates it" if path is not None and not path.exists() else ""


def count_text(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 run``, ``3 runs``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def short_name(name: str) -> str:
    """Return what a person can read of a run's name: the beginning of an id or key, which commands take too."""
    return name[:8] if _ID.fullmatch(name) else name


def duration_text(seconds: float) -> str:
    """Return a duration in its largest unit: ``3 min``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return a table for a terminal; the first row is the header."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        drawn.add_column(column, overflow="fold")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn


def show_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, in full width where the output is not a terminal."""
    if sys.stdout.isatty():
        Console(markup=False, highlight=False).print(table(rows))
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
