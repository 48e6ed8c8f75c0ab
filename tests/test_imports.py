"""Imports flow one way, and the core is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tracking_callbacks

PACKAGE = Path(tracking_callbacks.__file__).parent
FRAMEWORKS = {
    "torch",
    "transformers",
    "peft",
    "stable_baselines3",
    "gymnasium",
    "mlflow",
    "sklearn",
    "numpy",
    "matplotlib",
}

# Which outside packages each part of the package may import, at any depth of nesting.
ALLOWED = {
    "huggingface": {"transformers", "peft", "torch", "sklearn", "numpy", "mlflow", "datasets"},
    "sb3": {"stable_baselines3", "gymnasium", "numpy", "torch"},
    "flavors": {"stable_baselines3", "gymnasium", "numpy", "torch", "mlflow", "sb3_contrib", "cloudpickle"},
    "delivery": {"mlflow", "numpy", "matplotlib"},
    "finance": {"numpy"},
    "figures": {"numpy", "matplotlib"},
    "episodes": {"numpy"},
    "episode_log": {"numpy"},
    "equity_curves": {"numpy"},
    "returns": {"numpy"},
}
# Which parts of this package may not be imported from where: the arrows of docs/design.md, inward only.
CORE = {
    "run",
    "verbs",
    "datasets",
    "context",
    "masking",
    "tracker",
    "session",
    "journal",
    "records",
    "folders",
    "settings",
    "values",
    "attach",
    "launch",
    "exits",
}
FORBIDDEN = {
    **{part: {"huggingface", "sb3", "flavors", "delivery", "cli", "finance", "episodes"} for part in CORE},
    "records": {"journal", "session", "run", "tracker", "delivery"},
    "journal": {"session", "run", "tracker", "delivery", "settings"},
    "masking": {"values", "journal", "records", "run", "tracker", "settings", "context"},
    "context": {"run", "tracker", "attach", "huggingface", "sb3", "flavors", "delivery", "cli", "finance", "episodes"},
    "values": {"journal", "records", "run", "tracker", "settings"},
    "delivery": {"huggingface", "sb3", "flavors", "run", "tracker", "session", "attach", "cli"},
    "datasets": {"run", "verbs", "tracker", "journal", "session", "attach", "huggingface", "sb3", "delivery", "cli"},
    "finance": {"run", "tracker", "sb3", "journal", "records"},
    "figures": {*CORE, "huggingface", "sb3", "flavors", "delivery", "cli", "episodes", "episode_log"},
    "episodes": {"run", "tracker", "sb3", "journal", "records"},
    "huggingface": {"sb3", "delivery", "flavors"},
    "sb3": {"huggingface", "delivery"},
    "flavors": {"huggingface", "sb3", "delivery", "run", "tracker"},
}


def imports_of(file: Path, *, for_types_too: bool = False) -> set[str]:
    """Return the dotted names that a file imports, those under ``if TYPE_CHECKING`` apart."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if not for_types_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
                node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_part_imports_only_what_is_its_business(file: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(file)} & FRAMEWORKS

    assert outside <= ALLOWED.get(part_of(file), set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file: Path) -> None:
    inside = {name.split(".")[1] for name in imports_of(file) if name.startswith("tracking_callbacks.")}

    assert not inside & FORBIDDEN.get(part_of(file), set())


def test_only_one_file_talks_to_mlflows_client() -> None:
    talkers = {
        str(file.relative_to(PACKAGE))
        for file in (PACKAGE / "delivery").rglob("*.py")
        if any(name.split(".")[0] == "mlflow" for name in imports_of(file))
    }

    # translation.py knows its exceptions only, system_metrics.py its monitors.
    assert talkers == {
        *("delivery/store.py", "delivery/local_store.py", "delivery/translation.py", "delivery/system_metrics.py"),
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
