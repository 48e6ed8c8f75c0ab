"""Run the tests of the core and the callbacks on other versions: of Python, and of everything we depend on.

python scripts/matrix.py            # 3.12, 3.13 and floors
python scripts/matrix.py floors     # the oldest versions that pyproject.toml allows, on Python 3.11

Each has an environment of this name (``.venv-floors``), which the next call uses again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from pythons import ROOT, environment

# What depends on versions: Python's and those of MLflow, transformers, SB3 and what comes with them. Left out are the
# fault matrix, the slow trainers, and what has an environment of its own. `floors` has no TRL, which wants more.
TESTS = (
    *("tests/contents", "tests/delivery", "tests/flavors", "tests/mlflow_plugin"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py"))),
    *(f"tests/huggingface/test_{name}.py" for name in ("trainer_callback", "params", "saved_models", "evaluations")),
    *(f"tests/huggingface/test_{name}.py" for name in ("metric_names", "registered_models", "classification_metrics")),
    *(f"tests/sb3/test_sb3_{name}.py" for name in ("callback", "params", "evaluation", "registration")),
    "tests/faults/test_processes_killed.py",
)
LOCKED = ("-c", "requirements.lock", "--build-constraint", "requirements.lock", "-e", ".[all]", "--group", "dev")
FLOORS = ("-c", "constraints-floors.txt", "-e", ".[all]", "--group", "test")
ENVIRONMENTS = {"3.12": ("3.12", LOCKED), "3.13": ("3.13", LOCKED), "floors": ("3.11", FLOORS)}


def main(names: list[str]) -> int:
    """Install and test each environment, print a line for each, and return 1 if one failed."""
    lines = []
    for name in names or list(ENVIRONMENTS):
        version, wanted = ENVIRONMENTS[name]
        sources = ("pyproject.toml", wanted[1])
        python = environment(ROOT / f".venv-{name}", version, *wanted, sources=sources)
        began = time.monotonic()
        chosen = ("-q", "-n", "2", "--dist", "worksteal", "-m", "not alone", "--show-capture=no", "--tb=short")
        settings = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([python, "-m", "pytest", *chosen, *TESTS], cwd=ROOT, env=settings, check=False)
        minutes = (time.monotonic() - began) / 60
        lines.append(f"{name:8} {'passed' if done.returncode == 0 else 'FAILED'} after {minutes:.1f} min")
    print(*lines, sep="\n")
    return int(any("FAILED" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
