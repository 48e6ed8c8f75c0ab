"""Journals and state files as an attacker or a bad disk would write them: nothing outside a run's folder is touched.

Each case is a run's folder of whole records with valid checksums, delivered by the real code into a real store. A tree
of files next to the journal root must be byte-identical afterwards, and none of its content may be in the store.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from tracking_callbacks._delivery.drain import RunDrain
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.progress import Progress
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.system_metrics import SystemSampler
from tracking_callbacks._journal import calls, records
from tracking_callbacks._journal.frames import JournalWriter
from tracking_callbacks._journal.layout import (
    JournalRoot,
    LoggedModel,
    PromotionState,
    RunFolder,
    RunState,
    SessionState,
)
from tracking_callbacks._journal.owner import Owner
from tracking_callbacks._journal.pending import pending_runs, read_opened, unreadable_folders

SECRET = b"# what stands in the bystander's files"
DEAD = Owner("another boot", 1, 1, 1)
MOST_STEPS = 40

keys = itertools.count(1)
integers = st.integers(-(2**63), 2**64 - 1)
times = st.one_of(st.just(1_700_000_000_000), integers.filter(lambda number: number < 2**63))


def texts(*hostile: str) -> st.SearchStrategy[str]:
    likely = st.sampled_from([*hostile, "fine", "a/b", ""])
    return st.one_of(likely, likely, likely, st.text(max_size=20))


PATHS = [
    "../../bystander/file.txt", "../../bystander", "{bystander}/file.txt", "{bystander}", "../../../etc/passwd",
    "staged/link/file.txt", "staged/link/inner", "staged/link", "staged/holder/linked.txt", "staged/holder/linked",
    "staged/link/00000000000000000001.journal", "staged/model/model", "staged", "staged/", ".", "..", "", "/", "~",
    "state.json", "staged/../state.json", "staged/holder", "staged/holder/fine.txt",
    "staged/holder/../../../../bystander/file.txt", "staged/pipe", "staged/checkpoint/fine.txt", "staged/a\0b",
    "C:\\Windows", "\\\\host\\share", "x" * 5000, "staged/" + "x" * 300, "live", "uploading", "{journal}",
]  # fmt: skip
paths = texts(*PATHS)
places = st.sampled_from([None, "fine"]) | texts(
    "../../../bystander", "/tmp/x", "a/../../b", "{bystander}", "..", "C:/x", "\0", "artifacts", ".", "a//b"
)
names = texts("../x", "' or 1=1 --", "a\0b", "name", "x" * 300, "\ud7ff", "{bystander}")
mappings = st.dictionaries(names, names, max_size=3)
models = st.sampled_from(["m-1", "m-2"]) | names
versions = st.sampled_from(["pending-1", "1"]) | names
store_calls = st.one_of(
    st.builds(calls.CreateExperiment, names, st.none() | st.sampled_from(["s3://bucket/x", "C:/x"]) | paths, mappings),
    st.builds(
        calls.CreateModel, models, names, names, st.sampled_from([None, ""]) | names, st.none(), mappings, mappings
    ),
    st.builds(calls.ModelFiles, models),
    st.builds(calls.FinishModel, models, st.sampled_from(["READY", "FAILED", "PENDING"])),
    st.builds(calls.TagModel, models, mappings | st.just({"mlflow.modelVersions": "[1]"})),
    st.builds(calls.UntagModel, models, names),
    st.builds(calls.AddModelParams, models, mappings),
    st.builds(calls.UseModel, models, st.just("") | names, st.none() | times),
    st.builds(
        calls.LinkPoints, models, st.lists(st.tuples(names, st.floats(), times, times), max_size=2),
        st.none() | st.tuples(names, names), st.just("") | names,
    ),
    st.builds(calls.CreateRegisteredModel, names, mappings, st.none() | names),
    st.builds(calls.ChangeRegisteredModel, names, names),
    st.builds(calls.TagRegisteredModel, names, mappings),
    st.builds(calls.UntagRegisteredModel, names, names),
    st.builds(
        calls.CreateVersion, versions, names, names | paths | models.map(lambda one: f"models:/{one}"),
        st.sampled_from([None, ""]) | names, places, mappings, st.none() | names,
    ),
    st.builds(calls.ChangeVersion, names, versions, names),
    st.builds(calls.TagVersion, names, versions, mappings),
    st.builds(calls.UntagVersion, names, versions, names),
    st.builds(calls.SetAlias, names, names, versions),
    st.builds(calls.DropAlias, names, names),
)  # fmt: skip
file_records = st.one_of(
    st.builds(records.StoreCall, store_calls.map(calls.encode_call) | st.just(msgspec.Raw(b"\xc0")), st.none() | paths),
    st.builds(records.Artifact, paths, places, st.booleans(), st.booleans()),
    st.builds(
        records.Model, times, names | st.just("key"), paths, names, st.none() | names,
        st.lists(names, max_size=2).map(tuple), st.none() | times, mappings,
    ),
    st.builds(records.Automatic, mappings, st.none() | paths, places),
    st.builds(
        records.Drawing,
        st.sampled_from(
            ["learning_curves", "confusion_matrix", "classifier_curves", "regression", "scores", "importance", "equity"]
        ),
        places.map(str), st.none() | paths, mappings,
    ),
)  # fmt: skip
other_records = st.one_of(
    st.builds(records.Params, mappings),
    st.builds(records.Tags, mappings),
    st.builds(records.DeleteTag, names),
    st.builds(records.Metrics, times, times, st.dictionaries(names, st.floats(), max_size=3)),
    st.builds(records.Dataset, names, names, names, names, st.none() | names, st.none() | names, st.none() | names),
    st.builds(
        records.Promote, names, names, names, names, st.booleans(), st.floats(), st.none() | names,
        st.none() | integers, st.none() | names,
    ),
    st.builds(records.DeleteModel, names),
    st.builds(records.Describe, times, st.sampled_from(["FINISHED", "KILLED", None])),
)  # fmt: skip
hostile_records = st.one_of(file_records, file_records, file_records, other_records)
sessions = st.builds(
    SessionState, *(st.one_of(st.just(0), integers) for _ in range(5)),
    st.none() | st.tuples(st.sampled_from(["FINISHED", "KILLED", None]), integers), st.booleans(), integers, integers,
)  # fmt: skip
states = st.builds(
    RunState, st.none() | names, st.none() | names, st.dictionaries(names, integers, max_size=2),
    st.dictionaries(st.just("1".zfill(20)) | names, sessions, max_size=2), names, st.booleans(), st.booleans(),
    st.dictionaries(names, names, max_size=2),
    st.dictionaries(names, st.builds(PromotionState, st.booleans(), st.lists(names), st.none() | names), max_size=2),
    st.dictionaries(names, st.builds(LoggedModel, st.lists(names), st.none() | names), max_size=2),
    st.dictionaries(names, names, max_size=2), integers,
    made=st.dictionaries(models | versions, names | st.just(""), max_size=2),
)  # fmt: skip
LINKS = [
    "state.json", ".state.json", "rejected.jsonl", "drain.lock", "takeover.lock", "uploading", "drawn", "live",
    "live/00000000000000000001", "00000000000000000001.last", "00000000000000000002.journal", "staged/new",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the bystander's tree, a local store and a journal root."""
    folder = tmp_path_factory.mktemp("hostile")
    bystander = folder / "bystander"
    (bystander / "inner").mkdir(parents=True)
    for name in ("file.txt", "inner/deep.txt", "MLmodel", "00000000000000000001.journal"):
        (bystander / name).write_bytes(b"flavors: {}\n" + SECRET)
    return folder


@pytest.fixture
def store(place: Path, monkeypatch) -> Iterator[MlflowStore]:
    """The local store; what it sets in this process is set back."""
    monkeypatch.chdir(place)
    before = dict(os.environ)
    uri = f"sqlite:///{place}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # the heavy process reads it
    yield MlflowStore(uri)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def heavy(store: MlflowStore) -> Iterator[HeavyProcess]:
    """Draws the pictures that records ask for."""
    process = HeavyProcess(lambda size: None)
    yield process
    process.end()


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def filled(record: records.Record, place: Path, folder: RunFolder) -> records.Record:
    """Return a record with the placeholders in its texts replaced by this machine's paths."""
    replaced = {"{bystander}": str(place / "bystander"), "{journal}": str(folder.path)}

    def fill(value: object) -> object:
        if isinstance(value, str):
            for name, text in replaced.items():
                value = value.replace(name, text)
        return value

    return msgspec.structs.replace(
        record, **{key: fill(value) for key, value in msgspec.structs.asdict(record).items()}
    )


def make_run(place: Path, found: list[records.Record], opened: records.SessionOpened, key: str) -> RunFolder:
    folder = JournalRoot(place / "root").run(key)
    holder = folder.staged / "holder"
    (folder.staged / "checkpoint").mkdir(parents=True)
    holder.mkdir()
    (folder.staged / "model" / "model").mkdir(parents=True)
    for path in ("holder/fine.txt", "checkpoint/fine.txt", "model/model/MLmodel"):
        (folder.staged / path).write_text("flavors: {}")
    (folder.staged / "link").symlink_to(place / "bystander")
    (holder / "linked.txt").symlink_to(place / "bystander" / "file.txt")
    (holder / "linked").symlink_to(place / "bystander")
    os.mkfifo(folder.staged / "pipe")
    writer = JournalWriter(folder.journal(1))
    for record in [opened, opened, *found]:
        with contextlib.suppress(ValueError):  # a text that cannot be encoded is none that a journal can hold
            writer.append(filled(record, place, folder))
    writer.close()
    return folder


def plant(place: Path, folder: RunFolder, links: Iterable[str]) -> None:
    """Put links to the bystander's tree where delivery is going to read or write."""
    for name in links:
        path = folder.path / (f"{name}.{os.getpid()}" if name == ".state.json" else name)
        path.parent.mkdir(exist_ok=True, parents=True)
        if not path.exists() and not path.parent.is_symlink():
            path.symlink_to(place / "bystander" / ("file.txt" if "." in path.name else ""))


def header(place: Path, key: str) -> records.SessionOpened:
    where = records.StoreAddress(f"sqlite:///{place}/mlflow.db", str(place))
    return records.SessionOpened(key, 1, 1_700_000_000_000, DEAD, where, "experiment")


def deliver(place: Path, store: MlflowStore, heavy: HeavyProcess, folder: RunFolder) -> RunState:
    """Do what a ``sync`` does for one run, until nothing moves any more; return its last state."""
    root = JournalRoot(place / "root")
    unreadable_folders(root)
    pending_runs(root)
    folder.remove_planted()
    if not any(read_opened(journal) for journal in folder.journals()):
        return RunState()
    drain = RunDrain(folder, root, store, heavy, lambda *_: None, SystemSampler(), Progress())
    for _ in range(MOST_STEPS):
        worked = [drain.step_points(), drain.step_files()]
        if drain.complete():
            drain.finish()
            break
        if not any(worked):
            break
    return drain.state


@contextlib.contextmanager
def untouched(place: Path) -> Iterator[None]:
    before = snapshot(place / "bystander")
    yield
    assert snapshot(place / "bystander") == before
    artifacts = [path for path in (place / "mlruns").rglob("*") if path.is_file()]
    leaked = [path for path in artifacts if not path.is_symlink() and SECRET in path.read_bytes()]
    assert not leaked
    assert {entry.name for entry in place.iterdir()} <= {"bystander", "root", "mlruns", "mlflow.db", "mlartifacts"}
    shutil.rmtree(place / "root")
    for path in artifacts:
        path.unlink()


KINDS = {
    "artifact": lambda path: records.Artifact(path),
    "checkpoint": lambda path: records.Artifact(path, checkpoint=True),
    "model": lambda path: records.Model(1, "key", path, "model"),
    "automatic": lambda path: records.Automatic({}, path),
    "drawing": lambda path: records.Drawing("confusion_matrix", "figures", path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_known_way_out_of_a_runs_folder_is_open(place, store, heavy, kind) -> None:
    key = f"run{next(keys)}"
    with untouched(place):
        found = [KINDS[kind](path) for path in PATHS]
        state = deliver(
            place, store, heavy, make_run(place, [*found, records.RunEnded(1, "FINISHED")], header(place, key), key)
        )

        assert state.complete


@pytest.mark.parametrize("location", ["{bystander}", "file:{bystander}", "FILE://{bystander}", "../bystander"])
def test_no_journal_says_where_on_this_machine_an_experiment_lies(place, store, heavy, location) -> None:
    key = f"run{next(keys)}"
    with untouched(place):
        call = calls.CreateExperiment(key, location.format(bystander=place / "bystander"))
        found = [records.StoreCall(calls.encode_call(call)), records.RunEnded(1, "FINISHED")]
        state = deliver(place, store, heavy, make_run(place, found, header(place, key), key))

        assert state.complete
        assert store.find_experiment(key) is None


@pytest.mark.parametrize("link", LINKS)
def test_a_link_where_delivery_reads_or_writes_is_not_followed(place, store, heavy, link) -> None:
    key = f"run{next(keys)}"
    with untouched(place):
        learned = records.Drawing("learning_curves", "figures")
        refused = records.Model(1, "key", "staged/holder/fine.txt", "model")
        found = [records.Metrics(1, 1, {"a": 1.0, "b": math.inf}), learned, refused, records.RunEnded(1, "FINISHED")]
        folder = make_run(place, found, header(place, key), key)
        plant(place, folder, [link])

        assert deliver(place, store, heavy, folder).complete


@given(found=st.lists(hostile_records, min_size=1, max_size=4))
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "one", "models:/")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "one", "models:/one/7")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "one", "models:/one@none")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "one", "MODELS:/none/7")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "one", "http://[")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "new", "", None, "fine")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "new", "", "fine", "../..")))])
@example([records.StoreCall(calls.encode_call(calls.CreateVersion("pending-1", "new", "", "?", "fine")))])
@settings(max_examples=350, suppress_health_check=list(HealthCheck))
def test_records_that_lead_elsewhere_are_refused_and_the_rest_arrives(place, store, heavy, found) -> None:
    key = f"run{next(keys)}"
    with untouched(place):
        good = records.Params({"the last": "arrives"})
        ended = records.RunEnded(1_700_000_001_000, "FINISHED")
        folder = make_run(place, [*found, good, ended], header(place, key), key)
        state = deliver(place, store, heavy, folder)

        assert state.run_id is not None
        run = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(state.run_id)
        assert run.data.params["the last"] == "arrives"
        assert (run.info.status, state.complete) == ("FINISHED", True), state.last_error


@given(
    opened=st.builds(
        records.SessionOpened, names, times, times,
        st.builds(Owner, names, times, times, times),
        st.builds(records.StoreAddress, names, paths, st.none() | names), names,
        st.sampled_from(["own", "join", "amend"]), st.none() | names, st.none() | names, st.none() | names,
        st.none() | names, mappings, st.booleans(), st.just(False), st.none() | times, st.none() | names,
    ),
    keeps=st.sets(st.sampled_from(["run_id", "experiment", "experiment_id", "parent_id", "parent_key", "timestamp"])),
    keeps_names=st.sampled_from([("run_key", "session", "owner"), ("run_key", "session"), ("session",), ()]),
    found=st.lists(hostile_records | st.builds(records.RunEnded, times, st.sampled_from(["KILLED", None])), max_size=2),
    state=st.none() | states,
    links=st.sets(st.sampled_from(LINKS)),
)  # fmt: skip
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
def test_headers_states_and_links_that_lead_elsewhere_are_harmless(
    place, store, heavy, opened, keeps, keeps_names, found, state, links
) -> None:
    key = f"run{next(keys)}"
    with untouched(place):
        true = header(place, key)
        kept = {name: getattr(true, name) for name in {*keeps, *keeps_names, "store"}}
        opened = msgspec.structs.replace(opened, **kept)
        folder = make_run(place, [*found, records.RunEnded(1, "FINISHED")], opened, key)
        if state is not None:
            with contextlib.suppress(ValueError):
                folder.write_state(state)
        plant(place, folder, links)
        deliver(place, store, heavy, folder)
