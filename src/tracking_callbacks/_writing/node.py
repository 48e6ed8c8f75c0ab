"""Recognizes the machine that this process runs on among those of one distributed training run."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["node_name"]

# Set by torchrun (so also by accelerate), Ray Train, DeepSpeed and Slurm.
_NODE = ("GROUP_RANK", "NODE_RANK", "CROSS_RANK", "SLURM_NODEID")
_PROCESSES_HERE = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
_NODES = ("SLURM_NNODES",)


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return what this machine is called, ``node_1``; empty where the training run has only one."""
    processes, here, nodes = (_number(environ, names) for names in (("WORLD_SIZE",), _PROCESSES_HERE, _NODES))
    several = processes > here if here else processes > 1 and nodes > 1  # a batch job may train on one of its machines
    return f"node_{_number(environ, _NODE)}" if several else ""


def _number(environ: Mapping[str, str], names: tuple[str, ...]) -> int:
    """Return the number that the first of these variables holds, 0 without one."""
    return next((int(text) for name in names if (text := environ.get(name, "")).isdecimal()), 0)
