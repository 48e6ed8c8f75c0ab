"""Finds the Pythons that a script needs: on the PATH, or where pyenv keeps them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "environment", "find_python"]

ROOT = Path(__file__).parents[1]


def find_python(version: str) -> str:
    """Return an interpreter of this version, such as ``3.12``; leave with a message if there is none."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(map(str, kept.glob(f"{version}*/bin/python{version}")))]
    for candidate in filter(None, found):
        code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:  # pyenv's shim of a version that is not chosen only prints a hint
            return candidate
    sys.exit(
        f"Python {version} is missing: there is no python{version} on the PATH and none below {kept}.\n"
        f"Install it, for example by `pyenv install {version}` or by the system's package manager with its venv module."
    )


def environment(folder: Path, version: str, *wanted: str, fresh: bool = False, sources: tuple[str, ...] = ()) -> Path:
    """Return the interpreter of an environment of this Python with what pip installs for the arguments `wanted`.

    It is made anew if `fresh`, or if one of `sources`, files of the project, has changed since.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    made = ready.stat().st_mtime if ready.exists() else 0.0
    if fresh or not made or any((ROOT / name).stat().st_mtime > made for name in sources):
        print(f"installing into {folder}", flush=True)
        subprocess.run([find_python(version), "-m", "venv", "--clear", folder], check=True)
        # 25.3 has --build-constraint, which the pip of older Pythons lacks.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.3"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, cwd=ROOT)
        ready.touch()
    return python
