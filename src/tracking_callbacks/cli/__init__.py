"""The command line: what is pending, what a run holds, delivery by hand, what is wrong here, the MLflow UI."""

from __future__ import annotations

import click

from tracking_callbacks import __version__
from tracking_callbacks.cli.delivering import status, sync
from tracking_callbacks.cli.doctor import doctor
from tracking_callbacks.cli.runs import show, tail
from tracking_callbacks.cli.stores import models, ui

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look after the MLflow runs of tracking_callbacks.

    Training writes to a journal, and a delivery process sends the journal to MLflow automatically. These commands show
    what is not delivered yet and what a run holds, and deliver it if no delivery process is left: after the machine
    crashed, or for offline runs.

    Completion in bash, and likewise in zsh and fish:
    eval "$(_TRACKING_CALLBACKS_COMPLETE=bash_source tracking-callbacks)"
    """


for _command in (status, sync, show, tail, doctor, models, ui):
    main.add_command(_command)
