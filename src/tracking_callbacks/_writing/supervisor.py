"""Recognizes what ends a job by ending all of its processes, so that the delivery process cannot outlive the job."""

from __future__ import annotations

import functools
import os
from pathlib import Path

__all__ = ["RAY_WORKER_VARIABLE", "current_supervisor"]

RAY_WORKER_VARIABLE = "RAY_RAYLET_PID"  # undocumented (Ray 2.60); its workers run no exit functions

# A variable that each of them sets in every process of a job, and what it is called.
_BY_VARIABLE = {
    "SLURM_JOB_ID": "Slurm",
    "PBS_JOBID": "PBS",
    "LSB_JOBID": "LSF",
    "SGE_O_HOST": "Grid Engine",
    "_CONDOR_JOB_AD": "HTCondor",
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
    "JPY_PARENT_PID": "the notebook server",
    RAY_WORKER_VARIABLE: "Ray",
}
_CGROUPS = Path("/proc/self/cgroup")


def current_supervisor() -> str | None:
    """Return the name of what ends this process together with all processes that it has started; None without one."""
    named = next((name for variable, name in _BY_VARIABLE.items() if os.environ.get(variable)), None)
    return named or ("systemd" if _in_systemd_service() else None)


@functools.cache
def _in_systemd_service() -> bool:
    try:
        lines = _CGROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        return False
    entries = (line.split(":", 2) for line in lines)
    return any(path.endswith(".service") for _, controllers, path in entries if controllers in ("", "name=systemd"))
