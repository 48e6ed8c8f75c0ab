"""What the import contracts in pyproject.toml cannot say: what is loaded at run time, and how long it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {
    *("torch", "transformers", "peft", "stable_baselines3", "gymnasium"),
    *("mlflow", "sklearn", "numpy", "matplotlib"),
}


@pytest.mark.parametrize("statement", ["import tracking_callbacks", "import tracking_callbacks.cli"])
def test_the_core_pulls_in_no_framework(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )

    assert not loaded & FRAMEWORKS
    assert not loaded & {"yaml", "requests", "sqlalchemy", "filelock"}


@pytest.mark.parametrize("part", ["huggingface", "sb3"])
def test_a_callback_does_not_import_mlflow_before_a_model_is_saved(part: str) -> None:
    code = f"import sys, tracking_callbacks.{part}; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


@pytest.mark.alone
def test_the_core_is_imported_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    code = "import time; began = time.perf_counter(); import tracking_callbacks; print(time.perf_counter() - began)"
    environment = dict(os.environ) | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode is cached, as it is for a user

    def seconds() -> float:
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    seconds()

    assert min(seconds() for _ in range(5)) <= 0.1
