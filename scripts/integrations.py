"""Run all unchanged MLflow programs through the plugin, with faults, and our callbacks in further frameworks.

Some of them need more than the lock has: Lightning, XGBoost, LightGBM, Ray, Optuna's own callback.

``python scripts/integrations.py [PYTEST ARGUMENT …]`` makes ``.venv-integrations``, which the next call uses again. It
sees what is installed next to the calling interpreter, and adds only these packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-integrations"
PACKAGES = ("lightning", "xgboost-cpu", "lightgbm", "ray[tune,train]", "optuna-integration")


def main(arguments: list[str]) -> int:
    """Install what is missing, run the tests, and return pytest's exit code."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".ready").exists():
        print(f"installing {', '.join(PACKAGES)} into {ENVIRONMENT}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        (own,) = ENVIRONMENT.glob("lib/python*/site-packages")
        # Its .pth files too, one of which may lead to this package's sources.
        (own / "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        lock = ROOT / "requirements.lock"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", lock, *PACKAGES], check=True)
        (ENVIRONMENT / ".ready").touch()
    tests = ("tests/mlflow_plugin/test_programs.py", "tests/integrations")
    command = [python, "-m", "pytest", *tests, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"SOAK": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
