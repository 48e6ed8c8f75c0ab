"""The datasets of a run: what MLflow stores about them, and how that is read from the objects used for training.

No framework is imported here: an object is recognised only if its framework has already been imported.
"""

from __future__ import annotations

from tracking_callbacks._contents.datasets.description import describe_dataset
from tracking_callbacks._contents.datasets.summary import DatasetSummary, Row, summarize
from tracking_callbacks._contents.datasets.table import table_text

__all__ = ["DatasetSummary", "Row", "describe_dataset", "summarize", "table_text"]
