"""What is recorded about a run automatically: its origin, configuration, source, environment and log.

Each piece has a module here and a separate switch in `Recording`. A piece that fails affects neither the other pieces
nor the training. Pieces are recorded only for runs that this process started; a joined run gets them from the process
that started it. A resumed run keeps its first pieces and gets the new ones alongside, under
``<folder>/resumed-<UTC time>/``.
"""

from __future__ import annotations

__all__ = ["AUTOMATIC_ARTIFACTS", "AUTOMATIC_METRICS", "AUTOMATIC_TAGS"]

# Prefixes of the names of everything that a run gets automatically, except for what the callbacks add.
AUTOMATIC_ARTIFACTS = (
    *("config/run.json", "config/files/", "config/resumed-", "environment/", "source/"),
    *("figures/", "logs/train.log", "logs/train.1.log", "logs/output.log", "logs/output.1.log", "logs/resumed-"),
)
AUTOMATIC_METRICS = ("system/",)
AUTOMATIC_TAGS = ("mlflow.",)
