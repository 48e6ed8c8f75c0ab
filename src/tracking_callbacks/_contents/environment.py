"""What a run ran on: Python, platform, hardware, installed packages. Read in a few milliseconds, with no subprocess."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracking_callbacks._values.secrets import mask_text

__all__ = ["environment_files", "installed_packages"]

_DISTRIBUTION = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-py[\d.]+)?\.(dist|egg)-info")
# Variables that affect a training run. Listed one by one, because an environment is full of secrets.
_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF"),
    *("PYTHONHASHSEED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"),
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"),
    *("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_PROCID", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV"),
)


def environment_files() -> dict[str, str]:
    """Return the contents of the environment's files, by name."""
    return {
        "environment.json": json.dumps(_description(), indent=2) + "\n",
        "requirements.txt": "".join(f"{line}\n" for line in installed_packages(sys.path)),
    }


def installed_packages(folders: Sequence[str]) -> list[str]:
    """Return the requirements that would reinstall the packages found in `folders`; the first of each name counts.

    Names and versions are read from the names of the metadata folders (PEP 376), because opening the files of three
    hundred packages takes twenty times as long. A package that was installed from a URL or folder keeps it (PEP 610).
    """
    lines: dict[str, str] = {}
    for folder in folders:
        try:
            found = [entry.path for entry in os.scandir(folder or ".") if entry.name.endswith("-info")]
        except OSError:  # a zip archive, or a folder that does not exist
            continue
        for path in found:
            if match := _DISTRIBUTION.fullmatch(os.path.basename(path)):
                name = re.sub(r"[-_.]+", "-", match["name"]).lower()
                lines.setdefault(name, _requirement(name, match["version"].replace("_", "-"), path))
    return [lines[name] for name in sorted(lines)]


def _requirement(name: str, version: str, metadata: str) -> str:
    try:
        with open(os.path.join(metadata, "direct_url.json"), encoding="utf-8") as file:
            origin = json.load(file)
        url = mask_text(origin["url"])
        if "vcs_info" in origin:
            return f"{name} @ {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name}=={version}"
    editable = isinstance(origin.get("dir_info"), dict) and origin["dir_info"].get("editable")
    return f"# {name}=={version}, editable, from {url}" if editable else f"{name} @ {url}"


def _description() -> dict[str, Any]:
    return {
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation(),
                   "executable": sys.executable},
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine(),
                     "libc": " ".join(platform.libc_ver()).strip(), "host": socket.gethostname()},
        "cpu": {"model": _cpu_model(), "logical_cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "memory_megabytes": _memory_megabytes(),
        "gpus": list(_gpus()),
        "gpu_driver": _first_line("/proc/driver/nvidia/version"),
        "torch": _torch(),
        "variables": {name: mask_text(os.environ[name]) for name in _VARIABLES if name in os.environ},
    }  # fmt: skip


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            head = file.read(4096)  # enough for the first core; on a large machine the file has a megabyte
    except OSError:
        return platform.processor()
    match = re.search(r"^(?:model name|Model)\s*: (.+)$", head, re.MULTILINE)
    return match[1] if match else platform.machine()


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_megabytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> Iterator[str]:
    """Yield the names of NVIDIA GPUs as the driver lists them, because asking CUDA would start it in the trainer."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                yield line.partition(":")[2].strip()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return None


def _torch() -> dict[str, str | None] | None:
    torch = sys.modules.get("torch")
    version = getattr(torch, "version", None)
    return None if version is None else {"version": version.__version__, "cuda": version.cuda, "hip": version.hip}
