"""Train in environments and with agents of other packages: ``python scripts/other_packages.py``.

They are installed into ``.venv-environments``, which the next call uses again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-environments"
LOCK = ROOT / "requirements.lock"
TESTS = "tests/sb3/test_other_packages.py"
PACKAGES = ("supersuit", "pettingzoo", "envpool", "sbx-rl")
# Its dependencies are brokers' clients and other libraries of agents; its environments need none of them.
WITHOUT_DEPENDENCIES = ("finrl==0.3.7",)
FOR_TESTS = ("hypothesis", "psutil", "pytest", "pytest-timeout")


def main() -> int:
    """Install the packages, run the tests, and return pytest's exit code."""
    python = installed()
    return subprocess.run([python, "-m", "pytest", TESTS, "-v", "-rs"], cwd=ROOT, check=False).returncode


def installed() -> Path:
    """Return the interpreter of the environment; a package that cannot be installed is left out, and its tests skip."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".ready").exists():
        print(f"installing into {ENVIRONMENT}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-c", LOCK]
        subprocess.run([*install, "--upgrade", "pip"], check=True)
        subprocess.run([*install, "--build-constraint", LOCK, "-e", f"{ROOT}[sb3,finance]", *FOR_TESTS], check=True)
        for package in PACKAGES:
            subprocess.run([*install, package], check=False)
        for package in WITHOUT_DEPENDENCIES:
            subprocess.run([*install, "--no-deps", package], check=False)
        (ENVIRONMENT / ".ready").touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
