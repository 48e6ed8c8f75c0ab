"""The machine and the versions that the benchmark ran with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.bench import ROOT

__all__ = ["commit", "machine", "versions"]

_PACKAGES = (
    "tracking-callbacks",
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "stable-baselines3",
    "gymnasium",
    "wandb",
    "trackio",
    "tensorboard",
)


def machine() -> dict[str, str]:
    """Return the properties of this machine that the numbers depend on."""
    return {
        "CPU": _first_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of its peers."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def commit() -> str:
    """Return the short hash of the code that was measured."""
    hash_ = _git("rev-parse", "--short", "HEAD")
    return f"{hash_} and uncommitted changes" if _git("status", "--porcelain", "--", "src") else hash_


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or ("unknown" if found.returncode else "")


def _first_of(path: str, field: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
