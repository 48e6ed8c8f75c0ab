"""Who and what started a run: the tags that ``mlflow.start_run`` would set, except those from git."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

__all__ = ["entry_script", "origin_tags"]


def origin_tags() -> dict[str, str]:
    """Return MLflow's standard user and source tags for a run that starts now."""
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": "notebook" if _in_notebook() else _script_name() or "<console>",
        "mlflow.source.type": "NOTEBOOK" if _in_notebook() else "LOCAL",
    }


def entry_script() -> Path | None:
    """Return the program that was started; None in a notebook or an interactive interpreter."""
    name = None if _in_notebook() else _script_name()
    return Path(name).absolute() if name is not None and os.path.isfile(name) else None


def _script_name() -> str | None:
    return sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else None


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _user() -> str:
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container user without an entry in passwd
        return "unknown"
