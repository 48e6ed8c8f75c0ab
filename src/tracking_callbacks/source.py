"""Who and what made a run: user, entry script, git commit; the tags that ``mlflow.start_run`` would set."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

from tracking_callbacks.values import mask_uri

__all__ = ["git_tags", "source_tags"]

_GIT_SECONDS = 2.0


def source_tags(folder: Path) -> dict[str, str]:
    """Return MLflow's standard source tags for a run that starts now.

    Args:
        folder: Where the repository is looked for, if the entry script lies in none.
    """
    notebook = "ipykernel" in sys.modules
    script = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "<console>"
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "notebook" if notebook else script,
        "mlflow.source.type": "NOTEBOOK" if notebook else "LOCAL",
    }
    beside_script = git_tags(Path(script).absolute().parent) if os.path.isfile(script) and not notebook else {}
    return tags | (beside_script or git_tags(folder))


def git_tags(folder: Path) -> dict[str, str]:
    """Return commit, branch, dirty flag and remote of the repository around `folder`, or nothing outside of one."""
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return {}
    tags: dict[str, str] = {}
    dirty = False
    for line in status.splitlines():
        if line.startswith("# branch.oid ") and not line.endswith("(initial)"):
            tags["mlflow.source.git.commit"] = line.split()[2]
        elif line.startswith("# branch.head ") and not line.endswith("(detached)"):
            tags["mlflow.source.git.branch"] = line.split(maxsplit=2)[2]
        elif not line.startswith("#"):
            dirty = True
    tags["mlflow.source.git.dirty"] = str(dirty).lower()
    if remote := (_git(folder, "config", "--get", "remote.origin.url") or "").strip():
        tags["mlflow.source.git.repoURL"] = mask_uri(remote) if "://" in remote else remote
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_OPTIONAL_LOCKS: "status" would otherwise take the index lock and could fail a commit of the user's.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def _user() -> str:
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user without an entry in passwd
        return "unknown"
