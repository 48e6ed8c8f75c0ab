"""Records how a run was configured: command line, resolved settings, and the settings files that it read."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from tracking_callbacks._contents.git import is_program
from tracking_callbacks._values.conversion import to_jsonable
from tracking_callbacks._values.secrets import mask_command, mask_text
from tracking_callbacks.settings import Settings

__all__ = ["config_files"]

logger = logging.getLogger(__name__)

_MAX_BYTES = 2_000_000


def config_files(settings: Settings) -> dict[str, str]:
    """Return the contents of the configuration files to record, by path, with secrets masked."""
    command = mask_command(getattr(sys, "orig_argv", sys.argv))
    document = {
        "command": shlex.join(command),
        "arguments": mask_command(sys.argv),
        "working_folder": os.getcwd(),
        "tracker": _tracker_settings(settings),
    }
    return {"run.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n"} | _settings_files(settings)


def _tracker_settings(settings: Settings) -> dict[str, Any]:
    store = settings.store
    document: dict[str, Any] = to_jsonable(
        {
            "tracking_uri": store.uri,
            "registry_uri": store.registry_uri,
            "experiment_name": settings.experiment_name,
            "working_folder": store.working_folder,
            "tags": settings.tags,
            "record": msgspec.to_builtins(settings.record),
            "delivery": msgspec.to_builtins(settings.delivery),
        }
    )
    return document


def _settings_files(settings: Settings) -> dict[str, str]:
    contents: dict[str, str] = {}
    own = [] if settings.config_file is None else [settings.config_file]
    for path in (*own, *map(Path, settings.record.config_files)):
        try:
            if path.stat().st_size > _MAX_BYTES:
                logger.warning("config file %s is not logged: it is larger than %d bytes", path, _MAX_BYTES)
                continue
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("config file %s is not logged: %s", path, error)
            continue
        contents[_place(path, contents)] = mask_text(text, code=is_program(path.name))
    return contents


def _place(path: Path, taken: dict[str, str]) -> str:
    """Return ``files/`` and the path relative to the working folder, or just the name of a file outside it."""
    here = Path.cwd()
    inner = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
    place = PurePosixPath("files") / inner.as_posix()
    number = 1
    while str(place) in taken:
        number += 1
        place = place.with_name(f"{path.stem}-{number}{path.suffix}")
    return str(place)
