"""Commands that speak to the store: the MLflow UI, and the versions of registered models."""

from __future__ import annotations

import os
import sys

import click
import msgspec

from tracking_callbacks._journal.handover import TRACKING_URI_VARIABLE, VersionRow
from tracking_callbacks._writing.launch import ask_store
from tracking_callbacks.cli.common import AS_JSON, CONFIG, absent_store, settings_of, show_table

__all__ = ["models", "ui"]

_JOBS_VARIABLE = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"


@click.command(context_settings={"ignore_unknown_options": True})
@CONFIG
@click.option("--host", default="127.0.0.1", envvar="MLFLOW_HOST", show_default=True, help="Where the UI listens.")
@click.option("-p", "--port", default="5000", envvar="MLFLOW_PORT", show_default=True, help="Its port.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ui(config: str | None, host: str, port: str, arguments: tuple[str, ...]) -> None:
    """Open the MLflow UI on the store that this project's trackers use.

    ARGUMENTS are passed to `mlflow ui`, for example `--workers 1`.
    """
    settings = settings_of(config)
    if settings.tracking_uri.startswith(("http://", "https://")):
        click.echo(f"The runs are on a server: open {settings.masked_uri}")
        return
    # MLflow's server does not end the seven processes that wait for background jobs, and nothing here gives it one.
    environment = {_JOBS_VARIABLE: "false"} | os.environ
    environment |= {TRACKING_URI_VARIABLE: settings.tracking_uri, "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", settings.tracking_uri]
    command += ["--host", host, "--port", port, *arguments]
    click.echo(f"MLflow UI of {settings.masked_uri}: http://{host}:{port}")
    os.chdir(settings.working_folder)
    # In place of this process, so that a signal to it reaches the server, which ends its own processes.
    os.execve(command[0], command, environment)  # noqa: S606


@click.command()
@click.argument("name", required=False)
@CONFIG
@click.option("--tracking-uri", help="The store whose registry is asked, instead of this project's.")
@AS_JSON
def models(name: str | None, config: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Show the versions of registered models, and why one of them is champion.

    NAME is a registered model; the default is all of them. Each row has the version's aliases, the figure that it was
    compared by, the digest of the data behind that, and what came of the comparison.
    """
    settings = settings_of(config, tracking_uri)
    if absent := absent_store(settings.registry_uri or settings.tracking_uri):
        click.echo("[]" if as_json else absent)
        return
    found = ask_store(settings, "registry", *filter(None, [name]))
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
    if versions:
        show_table(rows)
    else:
        click.echo("No model is registered.")
