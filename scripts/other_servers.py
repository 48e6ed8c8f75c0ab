"""Deliver to MLflow servers of other versions, and read the methods of their stores for the plugin.

``python scripts/other_servers.py [VERSION …]``

Each version gets a separate environment below ``.venv-servers``, which the next call uses again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-servers"
# The last one without logged models, the first one with them, the oldest for the plugin, and the newest.
VERSIONS = ("2.22.5", "3.0.1", "3.10.0", "")


def main(versions: list[str]) -> int:
    """Install each version, run the tests against all, and return pytest's exit code."""
    pythons = [installed(version) for version in versions or VERSIONS]
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v"),
            *("tests/delivery/test_other_servers.py", "tests/mlflow_plugin/test_delegation.py"),
        ],
        cwd=ROOT,
        env=os.environ | {"OTHER_SERVERS": ":".join(map(str, pythons))},
        check=False,
    ).returncode


def installed(version: str) -> Path:
    """Return the interpreter of an environment that has this version of MLflow; empty means the newest."""
    folder = ENVIRONMENTS / (version or "newest")
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print(f"installing mlflow {version or '(the newest)'} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # Older versions do not limit SQLAlchemy, whose 2.1 took away what they import.
        wanted = [f"mlflow=={version}", "sqlalchemy<2.1"] if version else ["mlflow"]
        wanted += ["msgspec", "filelock"]  # what the plugin itself imports
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / ".ready").touch()
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
