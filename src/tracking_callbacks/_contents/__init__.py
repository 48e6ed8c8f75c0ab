"""What a run holds without being asked: where it came from, its settings, source, environment, log.

Each piece is a file here with a switch of its own on `MLflowTracker`, and fails by itself: neither another piece nor
the training notices. They are recorded for runs that this process has started; a run that was only joined is left to
whoever started it, and a continued one keeps its first pieces and gets the new ones beside them, under
``<folder>/resumed-<UTC time>/``.
"""

from __future__ import annotations

__all__ = ["AUTOMATIC_ARTIFACTS", "AUTOMATIC_METRICS", "AUTOMATIC_TAGS"]

# Beginnings of the names of everything that a run gets unasked, the callbacks' own pieces apart.
AUTOMATIC_ARTIFACTS = (
    *("config/run.json", "config/files/", "config/resumed-", "environment/", "source/"),
    *("figures/", "logs/train.log", "logs/train.1.log", "logs/resumed-"),
)
AUTOMATIC_METRICS = ("system/",)
AUTOMATIC_TAGS = ("mlflow.",)
