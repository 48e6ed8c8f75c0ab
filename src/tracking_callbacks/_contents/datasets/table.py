"""Encodes tables in the form that MLflow's UI shows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tracking_callbacks._values.conversion import to_jsonable
from tracking_callbacks.errors import InputError

__all__ = ["table_text"]


def table_text(table: object) -> str:
    """Return a table as the JSON of ``mlflow.log_table``: column names, and the rows as lists.

    Args:
        table: Columns by name, each a sequence of the same length; or a sequence of rows, each a mapping by column name
            in which columns may be missing; or a pandas data frame, whose index is left out. NaN becomes null.

    Raises:
        InputError: `table` is something else, or its columns differ in length.
    """
    if (pandas := sys.modules.get("pandas")) is not None and isinstance(table, pandas.DataFrame):
        table = table.to_dict("list")
    if isinstance(table, Mapping):
        columns = {str(name): list(values) for name, values in table.items() if _is_column(name, values)}
        if len({len(values) for values in columns.values()}) > 1:
            lengths = {name: len(values) for name, values in columns.items()}
            raise InputError(f"log_table: expected columns of one length, got {lengths}")
        names, rows = list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
    elif isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        names = list(dict.fromkeys(str(name) for row in table for name in row))
        rows = [[{str(key): value for key, value in row.items()}.get(name) for name in names] for row in table]
    else:
        kind = type(table).__name__
        raise InputError(f"log_table: expected columns by name, rows by column name, or a pandas frame, got {kind}")
    # Convert cell by cell, because a dataset's column may be called "token" without holding secrets.
    cells: list[list[Any]] = [[_cell(value) for value in row] for row in rows]
    return json.dumps({"columns": names, "data": cells}, ensure_ascii=False)


def _cell(value: object) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else to_jsonable(value)  # pandas: missing


def _is_column(name: object, values: object) -> bool:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise InputError(f"log_table: expected a sequence in column {name!r}, got {type(values).__name__}")
    return True
