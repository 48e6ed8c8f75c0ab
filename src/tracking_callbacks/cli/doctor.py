"""``tracking-callbacks doctor``: what would go wrong in a training run here, and how to fix it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import click
import msgspec
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from tracking_callbacks import __version__
from tracking_callbacks._journal.handover import TRACKING_URI_VARIABLE, Checkup
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import pending_runs
from tracking_callbacks._values.alerts import lacking_variables
from tracking_callbacks._writing.launch import ask_store
from tracking_callbacks._writing.supervisor import current_supervisor
from tracking_callbacks.cli.common import AS_JSON, CONFIG, absent_store, count_text
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.settings import (
    CONFIG_VARIABLE,
    DISABLING_VARIABLES,
    JOURNAL_VARIABLE,
    Settings,
    is_switched_on,
    resolve_settings,
)

__all__ = ["Finding", "doctor"]

_GOOD, _NOTE, _BAD = "good", "note", "bad"
_MARKS = {_GOOD: ("✓", "green"), _NOTE: ("·", "yellow"), _BAD: ("✗", "red")}
_SHOWN = ("mlflow", "transformers", "peft", "stable-baselines3", "gymnasium", "torch", "optuna", "ray")
_LITTLE_ROOM = 2 << 30  # bytes; a model and its checkpoints take as much


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at, as ``tracking-callbacks doctor --json`` prints it.

    Attributes:
        subject: What was looked at.
        verdict: ``good``, ``note`` (worth knowing) or ``bad`` (training would lack something).
        what: What was found.
        advice: How to fix it; empty where nothing is wrong.
    """

    subject: str
    verdict: str
    what: str
    advice: str = ""


@click.command()
@CONFIG
@click.option("--tracking-uri", help="Look at this store instead of this project's.")
@AS_JSON
def doctor(config: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """Find out what would go wrong in a training run here, and how to fix it.

    Looks at the settings, the store and its credentials, the installed versions, the journal root and its disk, and at
    what ends processes. The exit code is 1 if something is wrong.
    """
    settings, findings = _settle(config, tracking_uri)
    if settings is not None:
        for look in (_look_at_settings, _look_at_store, _look_at_alerts, _look_at_root):
            findings += look(settings)
    findings += [*_look_at_versions(), *_look_at_machine()]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for one in findings:
            mark, color = _MARKS[one.verdict]
            console.print(Text.assemble((f"{mark} ", color), f"{one.subject}: {one.what}"))
            if one.advice:
                console.print(Text(f"    {one.advice}"))
    sys.exit(1 if any(one.verdict == _BAD for one in findings) else 0)


def _settle(config: str | None, tracking_uri: str | None) -> tuple[Settings | None, list[Finding]]:
    """Return the settings and what is wrong with them; those without the config file where that cannot be used."""
    wrong: list[Finding] = []
    without_file = {name: text for name, text in os.environ.items() if name != CONFIG_VARIABLE}
    for file, environ in ((config, os.environ), (None, without_file)):
        try:
            return resolve_settings(tracking_uri, config=file, environ=environ), wrong
        except ConfigError as error:
            advice = "a training run raises this as a ConfigError at its start"
            if not (text := str(error)).startswith("config file "):
                wrong.append(Finding("settings", _BAD, text, advice))
                break
            advice += "; the other lines are about a run without the file"
            wrong.append(Finding("config file", _BAD, text.removeprefix("config file "), advice))
    return None, wrong


def _look_at_settings(settings: Settings) -> Iterator[Finding]:
    origin = TRACKING_URI_VARIABLE if os.environ.get(TRACKING_URI_VARIABLE) else "argument, config file or default"
    yield Finding("tracking URI", _GOOD, f"{settings.masked_uri} ({origin}), experiment {settings.experiment_name}")
    if settings.config_file is not None:
        yield Finding("config file", _GOOD, str(settings.config_file))
    for variable in DISABLING_VARIABLES:
        if is_switched_on(variable):
            yield Finding("switch", _BAD, f"{variable} switches tracking off", f"unset {variable}")


def _look_at_store(settings: Settings) -> Iterator[Finding]:
    if settings.disabled:
        return
    if absent := absent_store(settings.tracking_uri):
        yield Finding("store", _GOOD, absent)
        return
    answered = ask_store(settings, "checkup", settings.experiment_name)
    if answered.returncode:
        last = answered.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        yield Finding("store", _BAD, f"it could not be asked: {last}", "pip install what is missing")
        return
    checkup = msgspec.json.decode(answered.stdout, type=Checkup)
    if checkup.error:
        advice = f"start the server, or set {TRACKING_URI_VARIABLE} and its credentials; training runs meanwhile"
        yield Finding("store", _BAD, checkup.error, advice)
        return
    server = f"MLflow {checkup.version}" if checkup.version else "it does not say which version it is"
    there = "exists" if checkup.experiment else "will be created"
    yield Finding("store", _GOOD, f"answers ({server}); the experiment {there}")


def _look_at_alerts(settings: Settings) -> Iterator[Finding]:
    channels = [channel for alert in settings.alerts for channel in alert.channels]
    if not settings.delivery.offline and (lacking := lacking_variables(channels, os.environ)):
        yield Finding("alerts", _BAD, lacking, "set it where training starts; without it, the alert is not sent")


def _look_at_versions() -> Iterator[Finding]:
    yield Finding("versions", _GOOD, f"tracking-callbacks {__version__}, Python {sys.version.split()[0]}")
    try:
        needs = [Requirement(text) for text in requires("tracking-callbacks") or []]
    except PackageNotFoundError:
        yield Finding("versions", _NOTE, "the package is not installed, but found on the path", "pip install it")
        return
    installed = {need.name: found for need in needs if (found := _installed(need.name)) is not None}
    for need in needs:
        found = installed.get(need.name)
        if found is not None and not need.specifier.contains(found, prereleases=True):
            wanted = f"{need.name}{need.specifier}"
            what = f"{need.name} {found} is installed, {wanted} is needed"
            yield Finding("versions", _BAD, what, f'pip install "{wanted}"')
    shown = ", ".join(f"{name} {installed[name]}" for name in _SHOWN if name in installed)
    yield Finding("versions", _GOOD, shown)


def _installed(name: str) -> str | None:
    try:
        return version(name) if name != "tracking-callbacks" else None
    except PackageNotFoundError:  # of an extra that this environment does without
        return None


def _look_at_root(settings: Settings) -> Iterator[Finding]:
    root = JournalRoot(settings.journal_root)
    origin = f" ({JOURNAL_VARIABLE})" if os.environ.get(JOURNAL_VARIABLE) else ""
    place = next(folder for folder in (root.path, *root.path.parents) if folder.exists())
    try:
        root.check_private()
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        advice = "without it, training writes to the temp folder, which may be emptied; make it writable for you alone"
        yield Finding("journal root", _BAD, f"{root.path}{origin} cannot be used: {error.strerror}", advice)
        return
    free = shutil.disk_usage(place).free
    room = f"{root.path}{origin}, {free / (1 << 30):.0f} GiB free"
    if free < _LITTLE_ROOM:
        yield Finding("journal root", _BAD, room, "models and checkpoints wait there for their upload; make room")
    else:
        yield Finding("journal root", _GOOD, room)
    runs = pending_runs(root)
    left = [run for run in runs if run.left and not run.in_good_hands]
    waits = count_text(len(left), "run waits", "runs wait") if left else "no run waits"
    if settings.delivery.offline:
        yield Finding("journal root", _NOTE, f"delivery.offline is on; {waits} for tracking-callbacks sync")
    elif left:
        unheld = f"no process delivers {'it' if len(left) == 1 else 'them'}"
        why = next((run.last_error for run in left if run.last_error), unheld)
        yield Finding("journal root", _BAD, f"{waits}: {why}", "tracking-callbacks sync")
    elif runs:
        yield Finding("journal root", _GOOD, f"{count_text(len(runs), 'run is', 'runs are')} being delivered")


def _look_at_machine() -> Iterator[Finding]:
    if (supervisor := current_supervisor()) is not None:
        what = f"{supervisor} ends all processes of a job together; the end of a run waits for delivery"
        yield Finding("supervisor", _NOTE, what, "keep the journal root on a disk that outlives the job")
    elif Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        what = "a container; the delivery process dies with PID 1"
        yield Finding("supervisor", _NOTE, what, "keep the journal root on a volume")
    if not sys.platform.startswith("linux"):
        yield Finding("platform", _NOTE, f"{sys.platform} is supported on a best-effort basis")
