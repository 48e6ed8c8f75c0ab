"""What the import contracts in pyproject.toml cannot check: which modules are loaded at run time, and how many."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.version import Version

FRAMEWORKS = {
    *("torch", "transformers", "peft", "stable_baselines3", "gymnasium"),
    *("mlflow", "sklearn", "numpy", "matplotlib"),
}


@pytest.mark.parametrize("statement", ["import tracking_callbacks", "import tracking_callbacks.cli"])
def test_the_core_imports_no_framework(statement: str) -> None:
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


@pytest.mark.usefixtures("children_without_coverage")
def test_the_core_loads_few_modules() -> None:
    """Count modules because timings on a busy machine mean little; benchmark row 6 holds the bar of 100 ms."""
    code = "import sys; before = set(sys.modules); import tracking_callbacks; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) <= 165


@pytest.mark.usefixtures("children_without_coverage")
def test_the_delivery_process_of_a_server_imports_no_large_library() -> None:
    parts = "tracking_callbacks._delivery.process, tracking_callbacks._delivery.stores.rest"
    code = f"import sys, {parts}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {name for name in loaded if "." not in name} & {*FRAMEWORKS, "requests", "sqlalchemy", "yaml", "psutil"}
    if Version(metadata.version("filelock")) < Version("4.2"):  # it imports asyncio, which nothing else here does
        loaded = [name for name in loaded if name.partition(".")[0] not in ("asyncio", "_asyncio")]
    assert len(loaded) <= 300
