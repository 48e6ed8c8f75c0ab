"""The datasets of a run: what MLflow keeps of them, and how it is read off the objects that trainings are given.

No framework is imported here: an object of one is recognised only where its framework has been imported already.
"""

from __future__ import annotations

from tracking_callbacks._contents.datasets.description import describe_dataset
from tracking_callbacks._contents.datasets.summary import DatasetSummary, Row, summarize
from tracking_callbacks._contents.datasets.table import table_text

__all__ = ["DatasetSummary", "Row", "describe_dataset", "summarize", "table_text"]
