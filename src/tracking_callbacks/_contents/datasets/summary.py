"""Summarizes datasets: columns and their types, number of rows, fingerprint, origin, and access to rows."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from tracking_callbacks._contents.datasets.column_types import ColumnType, as_mapping, nested, type_name, value_type

__all__ = ["DatasetSummary", "Row", "summarize"]

Row = Mapping[str, Any]

# A fingerprint covers the length and at most this much of the beginning, because the training thread computes it.
_MAX_ROWS = 10_000
_MAX_BYTES = 16 << 20
# Python objects take longer, so only evenly spaced rows are read, at most this many.
_LISTED_ROWS = 1_000
_LISTED_BYTES = 4 << 20
_PROBED_ROWS = 4  # of a dataset that produces its rows on demand
_FIRST_ARROW_ROWS = 16
_ARROW_ROWS_PER_READ = 1_000

# The datasets library caches a dataset from the Hub as …/<owner>___<name>/<config>/<version>/<commit>/<file>.arrow
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What is known about a dataset; anything unknown is empty or None.

    Attributes:
        columns: Names and types of its columns.
        size: Counts such as ``num_rows``.
        digest: Eight hexadecimal digits, the same for the same content.
        name: The name that the dataset has by itself.
        source: Where the dataset comes from, in the form that belongs to `source_type`.
        source_type: MLflow's name for the kind of source.
        read: Returns the rows at the given indices.
    """

    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None
    name: str | None = None
    source: Mapping[str, Any] | None = None
    source_type: str = "code"
    read: Callable[[Sequence[int]], list[Row]] | None = None

    def sample(self, count: int) -> list[Row]:
        """Return `count` evenly spaced rows, or all rows if there are fewer."""
        rows = self.size.get("num_rows", 0)
        if self.read is None or not rows:
            return []
        return self.read(evenly_spaced(rows, count))


def summarize(dataset: object, *, readable: bool = True) -> DatasetSummary:
    """Return a summary of `dataset`.

    These are recognised: ``datasets.Dataset`` and ``IterableDataset``, pandas data frames, lists of rows, numpy arrays
    and torch tensors, torch's ``TensorDataset`` and ``Subset``. Of any other dataset with ``__len__`` and
    ``__getitem__``, as torch uses them, four rows are read, and the state of the random number generators is restored.

    Args:
        dataset: The dataset.
        readable: This process may read rows. Pass False if worker processes load them, because all workers would share
            a file that the first ``__getitem__`` opens.
    """
    if isinstance(dataset, DatasetSummary):
        return dataset
    if (frames := sys.modules.get("pandas")) is not None and isinstance(dataset, frames.DataFrame):
        return _of_frame(frames, dataset)
    if (huggingface := _huggingface_datasets()) is not None:
        if isinstance(dataset, huggingface.Dataset):
            return _of_huggingface(dataset)
        if isinstance(dataset, huggingface.IterableDataset):
            return _of_huggingface_stream(dataset)
    if (torch_data := sys.modules.get("torch.utils.data")) is not None:
        if isinstance(dataset, torch_data.TensorDataset):
            return _of_arrays({str(number): tensor for number, tensor in enumerate(dataset.tensors)})
        if isinstance(dataset, torch_data.Subset):
            return _of_subset(dataset, summarize(dataset.dataset, readable=readable))
    if isinstance(dataset, (list, tuple)):
        return _of_rows(dataset, dataset.__getitem__, evenly_spaced(len(dataset), _LISTED_ROWS))
    if hasattr(dataset, "shape") and hasattr(dataset, "dtype") and dataset.shape:
        return _of_arrays({"values": dataset})
    return _of_any(dataset, readable=readable)


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def _huggingface_datasets() -> ModuleType | None:
    module = sys.modules.get("datasets")  # a user's own module may have that name
    return module if hasattr(module, "Dataset") and hasattr(module, "IterableDataset") else None


def _of_huggingface(dataset: Any) -> DatasetSummary:
    arrow = dataset.with_format("arrow")
    columns = {name: _feature_type(feature) for name, feature in dataset.features.items()}

    def read(indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = arrow.select(indices)[:].to_pylist() if len(indices) else []
        return rows

    return DatasetSummary(
        columns=columns,
        size={"num_rows": dataset.num_rows},
        digest=_digest([repr(columns), str(dataset.num_rows), *_arrow_content(arrow)]),
        read=read,
        **_huggingface_origin(dataset),
    )


def _of_huggingface_stream(dataset: Any) -> DatasetSummary:
    columns = {name: _feature_type(feature) for name, feature in (dataset.features or {}).items()}
    splits = dataset.info.splits or {}
    rows = splits[str(dataset.split)].num_examples if str(dataset.split) in splits else None
    return DatasetSummary(
        columns=columns, size={} if rows is None else {"num_rows": rows}, **_huggingface_origin(dataset)
    )


def _arrow_content(arrow: Any) -> Iterable[bytes]:
    """Yield the first rows of a dataset as bytes, the same bytes for the same content."""
    import pyarrow as pa

    start, rows, read = 0, _FIRST_ARROW_ROWS, 0
    while start < min(arrow.num_rows, _MAX_ROWS) and rows > 0:
        table = arrow[start : min(start + rows, _MAX_ROWS)].combine_chunks().replace_schema_metadata(None)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        content = stream.getvalue()
        yield content
        start, read = start + rows, read + content.size
        rows = min(_ARROW_ROWS_PER_READ, (_MAX_BYTES - read) * start // read)  # images: fewer at a time


def _huggingface_origin(dataset: Any) -> dict[str, Any]:
    info, split = dataset.info, str(dataset.split) if dataset.split is not None else None
    origin: dict[str, Any] = {"name": info.dataset_name or None}
    files = [Path(one["filename"]) for one in getattr(dataset, "cache_files", ())]
    if not files:
        return origin
    parts = files[0].parent.parts
    if len(parts) >= 4 and _COMMIT.fullmatch(parts[-1]):
        path = parts[-4].replace("___", "/")
        origin |= {
            "source_type": "hugging_face",
            "source": {"path": path, "config_name": info.config_name, "split": split, "revision": parts[-1]},
        }
    else:
        origin |= {"source_type": "local", "source": {"uri": str(files[0].parent)}}
    return origin


def _feature_type(feature: Any) -> ColumnType:
    """Return MLflow's type for a feature of the ``datasets`` library."""
    if isinstance(feature, Mapping):
        return {
            "type": "object",
            "properties": {name: as_mapping(_feature_type(one)) for name, one in feature.items()},
        }
    if isinstance(feature, list):
        return {"type": "array", "items": as_mapping(_feature_type(feature[0]))}
    inner = getattr(feature, "feature", None)
    if inner is not None:  # Sequence, List, LargeList
        return {"type": "array", "items": as_mapping(_feature_type(inner))}
    dtype = str(getattr(feature, "dtype", ""))
    if (dimensions := getattr(feature, "shape", None)) and hasattr(feature, "dtype"):  # Array2D, …
        return nested(type_name(dtype), len(dimensions))
    return type_name(dtype)


# -- pandas, arrays --------------------------------------------------------------------------------------------------


def _of_frame(pandas: ModuleType, frame: Any) -> DatasetSummary:
    columns = {str(name): _series_type(frame.iloc[:, place]) for place, name in enumerate(frame.columns)}
    first = frame.iloc[:_MAX_ROWS]
    content: list[str | bytes] = [repr(columns), str(len(frame))]
    for place in range(first.shape[1]):
        column = first.iloc[:, place]
        try:
            content.append(pandas.util.hash_pandas_object(column, index=place == 0).to_numpy().tobytes())
        except TypeError:  # lists and other unhashable objects
            content.append(_encode(column.tolist()))

    def read(indices: Sequence[int]) -> list[Row]:
        chosen = frame.iloc[list(indices)]
        named = not isinstance(frame.index, pandas.RangeIndex)  # dates, mostly
        rows: list[Row] = (chosen.reset_index() if named else chosen).to_dict("records")
        return rows

    return DatasetSummary(
        columns=columns,
        size={"num_rows": len(frame), "num_elements": int(frame.size)},
        digest=_digest(content),
        read=read,
    )


def _series_type(series: Any) -> ColumnType:
    if str(series.dtype) not in ("object", "category"):
        return type_name(str(series.dtype))
    first = series.first_valid_index()
    return "string" if first is None else value_type(series.loc[first])


def _of_arrays(arrays: Mapping[str, Any]) -> DatasetSummary:
    """Summarize arrays or tensors whose first axis is the rows."""
    rows = min(len(array) for array in arrays.values())
    columns = {
        name: nested(type_name(str(array.dtype).removeprefix("torch.")), len(array.shape) - 1)
        for name, array in arrays.items()
    }
    content: list[str | bytes] = [repr(columns), str(rows), *(str(tuple(array.shape)) for array in arrays.values())]
    for array in arrays.values():
        first = array[: max(1, min(_MAX_ROWS, _MAX_BYTES // max(1, array[:1].nbytes)))]
        content.append(_array_bytes(first))

    def read(indices: Sequence[int]) -> list[Row]:
        return [{name: array[index].tolist() for name, array in arrays.items()} for index in indices]

    return DatasetSummary(columns=columns, size={"num_rows": rows}, digest=_digest(content), read=read)


def _array_bytes(array: Any) -> bytes:
    if hasattr(array, "detach"):  # a torch tensor; numpy does not know its bfloat16
        if not array.numel():
            return b""
        array = array.detach().cpu().contiguous().view(-1).view(sys.modules["torch"].uint8).numpy()
    return bytes(array.tobytes())


# -- rows ------------------------------------------------------------------------------------------------------------


def _of_subset(subset: Any, whole: DatasetSummary) -> DatasetSummary:
    rows, read = len(subset.indices), whole.read
    chosen = [int(subset.indices[place]) for place in evenly_spaced(rows, _LISTED_ROWS)]  # there may be millions
    return DatasetSummary(
        columns=whole.columns,
        size={"num_rows": rows},
        digest=_digest([whole.digest or "", str(rows), repr(chosen)]),
        name=whole.name,
        source=whole.source,
        source_type=whole.source_type,
        read=None if read is None else lambda places: read([int(subset.indices[place]) for place in places]),
    )


def _of_any(dataset: Any, *, readable: bool) -> DatasetSummary:
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    try:
        rows = len(dataset)
    except (TypeError, NotImplementedError):
        return DatasetSummary(digest=_digest([kind]))
    if not readable or not hasattr(dataset, "__getitem__"):
        return DatasetSummary(size={"num_rows": rows}, digest=_digest([kind, str(rows)]))
    get = _keeping_random_state(dataset.__getitem__)
    return _of_rows(dataset, get, evenly_spaced(rows, _PROBED_ROWS), kind)


def _of_rows(dataset: Any, get: Callable[[int], Any], probed: Sequence[int], kind: str = "") -> DatasetSummary:
    """Summarize a dataset by some of its rows."""

    def read(indices: Sequence[int]) -> list[Row]:
        return [_as_row(get(index)) for index in indices]

    content: list[str | bytes] = [kind, str(len(dataset))]
    columns: dict[str, ColumnType] = {}
    volume = 0
    for index in probed:
        row = _as_row(get(index))
        columns = columns or {str(name): value_type(value) for name, value in row.items()}
        content.append(_encode(dict(row)))
        volume += len(content[-1])
        if volume > _LISTED_BYTES:
            break
    return DatasetSummary(columns=columns, size={"num_rows": len(dataset)}, digest=_digest(content), read=read)


def _as_row(item: Any) -> Row:
    if isinstance(item, Mapping):
        return item
    if hasattr(item, "_asdict"):
        return dict(item._asdict())
    if isinstance(item, (tuple, list)):
        return {str(place): value for place, value in enumerate(item)}
    if hasattr(item, "shape") or hasattr(item, "tobytes") or not hasattr(item, "__dict__"):  # a tensor, a picture
        return {"value": item}
    return dict(vars(item))


def _opaque(value: Any) -> Any:
    """Return what msgpack encodes for a value it does not know: the value's content, never its memory address."""
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        return [str(value.dtype), tuple(value.shape), _array_bytes(value)] if value.shape else value.item()
    if isinstance(value, complex):
        return repr(value)
    return value.tobytes() if hasattr(value, "tobytes") else type(value).__qualname__  # PIL images


_encode = msgspec.msgpack.Encoder(enc_hook=_opaque).encode


def _keeping_random_state(get: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return `get`, wrapped so that the global random number generators keep their state for the training."""

    @functools.wraps(get)
    def kept(index: int) -> Any:
        import random

        python_state, numpy, torch = random.getstate(), sys.modules.get("numpy"), sys.modules.get("torch")
        numpy_state = numpy.random.get_state() if numpy is not None else None
        torch_state = torch.get_rng_state() if torch is not None else None
        try:
            return get(index)
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            if torch is not None:
                torch.set_rng_state(torch_state)

    return kept


# -- parts, digests --------------------------------------------------------------------------------------------------


def evenly_spaced(rows: int, count: int) -> Sequence[int]:
    """Return `count` evenly spaced indices of `rows` rows, starting with the first row, or all if there are fewer."""
    return range(rows) if rows <= count else [index * rows // count for index in range(count)]


def _digest(content: Iterable[Any]) -> str:
    import hashlib

    total = hashlib.blake2b(digest_size=4)
    for part in content:
        total.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return total.hexdigest()
