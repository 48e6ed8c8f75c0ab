"""What is read from a dataset, and how MLflow stores it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

from tracking_callbacks import Delivery, InputError, InvalidNameError, MLflowTracker, Recording
from tracking_callbacks._callbacks.dataset_inputs import log_input
from tracking_callbacks._contents.datasets import describe_dataset, summarize, table_text

LONGS = {"type": "array", "items": {"type": "long"}}


class Squares(TorchDataset):
    """A map-style dataset that draws random numbers, as augmentations do."""

    def __init__(self, length: int = 10, factor: int = 1) -> None:
        self.length, self.factor, self.asked = length, factor, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked += 1
        noise = random.random() + np.random.random() + torch.rand(1).item()
        return {"x": torch.tensor([index, index]), "y": self.factor * index**2, "noise": noise > 0}


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from range(3)


def made(kind: str, change: int = 0) -> Any:
    """Return a dataset of ten rows; `change` changes one value in it."""
    numbers = [*range(9), 9 + change]
    match kind:
        case "huggingface":
            return datasets.Dataset.from_dict({"ids": [[n, n] for n in numbers], "label": numbers})
        case "frame":
            return pd.DataFrame({"close": [float(n) for n in numbers], "name": [f"day {n}" for n in numbers]})
        case "rows":
            return [{"ids": [n, n], "text": f"day {n}"} for n in numbers]
        case "pairs":
            return [(f"day {n}", n) for n in numbers]
        case "array":
            return np.array([[n, n] for n in numbers], dtype=np.float32)
        case "tensors":
            return TensorDataset(torch.tensor([[n, n] for n in numbers]), torch.tensor(numbers, dtype=torch.bfloat16))
        case "subset":
            return Subset(made("rows", change), [0, 9, 5])
        case "torch":
            return Squares(factor=1 + change)
    raise AssertionError(kind)


COLUMNS = {
    "huggingface": {"ids": LONGS, "label": "long"},
    "frame": {"close": "double", "name": "string"},
    "rows": {"ids": LONGS, "text": "string"},
    "pairs": {"0": "string", "1": "long"},
    "array": {"values": {"type": "array", "items": {"type": "float"}}},
    "tensors": {"0": LONGS, "1": "float"},
    "subset": {"ids": LONGS, "text": "string"},
    "torch": {"x": LONGS, "y": "long", "noise": "boolean"},
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_rows_and_content_are_read(kind: str) -> None:
    summary = summarize(made(kind))

    assert summary.columns == COLUMNS[kind]
    assert summary.size["num_rows"] == (3 if kind == "subset" else 10)
    assert summary.digest == summarize(made(kind)).digest
    assert summary.digest != summarize(made(kind, change=1)).digest
    assert len(summary.digest or "") == 8
    assert [set(row) for row in summary.sample(2)] == [set(COLUMNS[kind])] * 2
    assert len(summary.sample(100)) == summary.size["num_rows"]


def test_another_process_finds_the_same_digests() -> None:
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path = {path!r}; import test_datasets; print(*test_datasets.digests())"
    others = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert others == digests()


def digests() -> list[str]:
    return [str(summarize(made(kind)).digest) for kind in COLUMNS]


def test_reading_a_torch_dataset_does_not_change_the_random_numbers_of_training() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = (torch.rand(1).item(), np.random.random(), random.random())
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    dataset = Squares(1_000_000)
    summarize(dataset)

    assert dataset.asked == 4
    assert (torch.rand(1).item(), np.random.random(), random.random()) == expected


def test_rows_that_worker_processes_load_are_not_read_in_the_main_process() -> None:
    dataset = Squares()
    summary = summarize(dataset, readable=False)

    assert dataset.asked == 0
    assert (summary.size, summary.columns, summary.sample(5)) == ({"num_rows": 10}, {}, [])


@pytest.mark.parametrize("dataset", [Stream(), iter([1]), [], pd.DataFrame(), np.empty((0, 2)), object()])
def test_a_dataset_without_rows_to_show_still_has_a_digest(dataset: Any) -> None:
    summary = summarize(dataset)

    assert summary.digest
    assert summary.sample(20) == []


def test_only_a_few_large_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracking_callbacks._contents.datasets.summary._MAX_BYTES", 100_000)

    def digest(changed: int) -> str | None:
        rows = [b"x" * 5_000 if row != changed else b"y" * 5_000 for row in range(100)]
        return summarize(datasets.Dataset.from_dict({"picture": rows})).digest

    assert digest(changed=15) != digest(changed=99)
    assert digest(changed=50) == digest(changed=99)


def test_two_parts_of_one_dataset_have_different_digests() -> None:
    whole = made("rows") * 1000
    parts = [Subset(whole, range(first, len(whole), 2)) for first in (0, 1)]

    assert summarize(parts[0]).digest != summarize(parts[1]).digest
    assert summarize(parts[1]).sample(2) == [whole[1], whole[5001]]


def test_objects_in_a_frame_are_described_by_their_kind_and_never_by_their_address() -> None:
    frames = [pd.DataFrame({"object": [[object(), 1], {"a": object()}]}) for _ in range(2)]

    assert summarize(frames[0]).digest == summarize(frames[1]).digest


def test_a_dataset_from_the_hub_names_its_repository_and_commit(tmp_path: Path) -> None:
    commit = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
    folder = tmp_path / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / commit  # as datasets lays its cache out
    folder.mkdir(parents=True)
    kept = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, split="train")
    kept.info.dataset_name, kept.info.config_name = "imdb", "plain_text"
    kept.map(lambda row: row, cache_file_name=str(folder / "imdb-train.arrow"))
    loaded = datasets.Dataset.from_file(str(folder / "imdb-train.arrow"), info=kept.info, split="train")
    record = describe_dataset("imdb", dataset=loaded)

    assert summarize(loaded).name == "imdb"
    assert record.source_type == "hugging_face"
    assert json.loads(record.source) == {
        "path": "stanfordnlp/imdb", "config_name": "plain_text", "split": "train", "revision": commit,
    }  # fmt: skip


def test_nested_features_have_mlflows_types() -> None:
    features = datasets.Features(
        {
            "when": datasets.Value("timestamp[s]"),
            "kind": datasets.ClassLabel(names=["a", "b"]),
            "box": {"x": datasets.Value("float32")},
            "grid": datasets.Array2D((2, 2), "int32"),
            "picture": datasets.Image(),
        }
    )
    summary = summarize(datasets.Dataset.from_dict({name: [] for name in features}, features=features))

    assert summary.columns == {
        "when": "datetime",
        "kind": "long",
        "box": {"type": "object", "properties": {"x": {"type": "float"}}},
        "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        "picture": "binary",
    }


def test_arguments_take_precedence_over_what_was_read() -> None:
    record = describe_dataset(
        "prices",
        dataset=made("frame"),
        digest="abc",
        schema={"a": "long"},
        size=3,
        source="https://me:pw@host/x",
        source_type="http",
    )

    assert (record.name, record.digest, record.source_type) == ("prices", "abc", "http")
    assert json.loads(record.source) == {"uri": "https://***@host/x"}
    assert json.loads(record.schema or "") == {"mlflow_colspec": [{"type": "long", "name": "a", "required": True}]}
    assert json.loads(record.profile or "") == {"num_rows": 3}


def test_a_dataset_without_a_name_or_with_a_long_digest_is_refused() -> None:
    with pytest.raises(InvalidNameError, match="dataset name"):
        describe_dataset(" ")
    with pytest.raises(InputError, match="at most 36 characters, got 37"):
        describe_dataset("a", digest="x" * 37)


@pytest.mark.parametrize(
    "table",
    [
        {"a": [1, 2], "token": ["x", None]},
        [{"a": 1, "token": "x"}, {"a": 2}],
        pd.DataFrame({"a": [1, 2], "token": ["x", None]}),
    ],
    ids=["columns", "rows", "frame"],
)
def test_a_table_has_one_form(table: Any) -> None:
    assert json.loads(table_text(table)) == {"columns": ["a", "token"], "data": [[1, "x"], [2, None]]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1], "b": [1, 2]}, "columns of one length, got {'a': 1, 'b': 2}"),
        ({"a": "text"}, "a sequence in column 'a', got str"),
        ([1, 2], "columns by name, rows by column name, or a pandas frame, got list"),
        (None, "got NoneType"),
    ],
)
def test_input_that_is_not_a_table_is_named(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("{", r"\{")):
        table_text(table)


def test_logged_tables_are_listed_next_to_tables_that_others_logged(
    tracker: MLflowTracker, client, tmp_path: Path
) -> None:
    others = {"path": "theirs.json", "type": "table"}
    with tracker.start_run(tags={"mlflow.loggedArtifacts": json.dumps([others])}) as run:
        run.log_table({"a": [1], "contact": ["https://me:hunter2@host"]}, "tables/one.json")
        run.log_table({"a": [2]}, "two.json")
        run.log_table({"a": [3]}, "two.json")
        with pytest.raises(InputError, match=r"ends in \.json"):
            run.log_table({"a": [1]}, "one.csv")
    assert run.flush().complete

    shown = json.loads(client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert shown == [others, *({"path": path, "type": "table"} for path in ("tables/one.json", "two.json"))]
    paths = [client.download_artifacts(run.run_id, path, str(tmp_path)) for path in ("tables/one.json", "two.json")]
    assert "hunter2" not in Path(paths[0]).read_text()
    assert pd.read_json(paths[1], orient="split")["a"].tolist() == [3]  # as mlflow.load_table reads it


def test_a_sample_of_rows_is_logged_when_the_tracker_asks_for_it(server, shared_journal, client, tmp_path) -> None:
    rows = [{"text": "x" * 5000, "ids": list(range(100)), "raw": b"abc", "pixels": np.zeros((3, 3))} for _ in range(50)]
    tracker = MLflowTracker(
        server.uri, "samples", record=Recording(sample_rows=True), delivery=Delivery(journal_root=shared_journal)
    )
    with tracker.start_run() as run:
        log_input(run, rows, "train", context="training")
    assert run.flush().complete

    table = json.loads(Path(client.download_artifacts(run.run_id, "data/sample_train.json", str(tmp_path))).read_text())
    assert table["columns"] == ["text", "ids", "raw", "pixels"]
    assert len(table["data"]) == 20
    text, ids, raw, pixels = table["data"][0]
    assert (len(text), ids[-1], raw, pixels) == (2000, "… 100 in all", "<3 bytes>", "<float64 of shape (3, 3)>")


def test_no_dataset_is_recorded_when_datasets_are_switched_off(server, shared_journal, client) -> None:
    tracker = MLflowTracker(
        server.uri,
        "samples",
        record=Recording(datasets=False, sample_rows=True),
        delivery=Delivery(journal_root=shared_journal),
    )
    with tracker.start_run() as run:
        log_input(run, made("rows"), "train", context="training")
        run.log_dataset("explicit", dataset=made("frame"))
    assert run.flush().complete

    (found,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert found.dataset.name == "explicit"
    assert "data" not in {entry.path for entry in client.list_artifacts(run.run_id)}
