"""A record of every call that returned in a trainer, in a file next to the journal that survives any kill.

In the trainer, `keep_ledger` writes one line before each of the run's verbs and one after it has returned, one for each
record that a journal has taken, and the seconds that hooks have cost. In the test, `read_ledger` gives it back, for
`exactness` to compare with the store. The verbs say what must arrive, whatever the package makes of it; the records say
with which times; a verb without its second line was in flight when the trainer died.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tracking_callbacks import Run, TrackingError
from tracking_callbacks._contents.datasets import describe_dataset
from tracking_callbacks._journal.records import Record, decode, encode
from tracking_callbacks._values.conversion import MAX_PARAM_LENGTH, MAX_TAG_LENGTH, cut_text, param_text, to_scalar
from tracking_callbacks._values.names import SafeNames
from tracking_callbacks._writing.session import Session

Kind = TypeVar("Kind", bound=Record)

MARK = "mark"

# -- in the trainer ---------------------------------------------------------------------------------------------------


def keep_ledger(path: Path) -> LedgerWriter:
    """From now on, write down what the verbs of all runs accept and what the journals take."""
    ledger = LedgerWriter(path)
    for name in _DESCRIPTIONS:
        setattr(Run, name, ledger.recorded(getattr(Run, name)))
    Run.save_model = ledger.recorded_saving(Run.save_model)  # type: ignore[method-assign]
    Session.append = ledger.journaled(Session.append)  # type: ignore[method-assign]
    ledger.mark("begin")
    return ledger


class LedgerWriter:
    """The ledger of this process; every line is one write, which survives the death of the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._numbers = itertools.count()
        self._names: WeakKeyDictionary[Run, dict[str, SafeNames]] = WeakKeyDictionary()

    def _write(self, **line: Any) -> None:
        line |= {"pid": os.getpid(), "time": time.time_ns() // 1_000_000}
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def mark(self, mark: str) -> None:
        """Write down how far training has come."""
        self._write(mark=mark)

    def time_calls(self, owner: type, *names: str) -> None:
        """Write down the seconds that each call of the methods takes."""

        def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                started = time.perf_counter()
                try:
                    return method(*args, **kwargs)
                finally:
                    self._write(timed=name, seconds=time.perf_counter() - started)

            return call

        for name in names:
            setattr(owner, name, timed(name, getattr(owner, name)))

    def recorded(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        """Return `verb` of a run with a line before it and one after it has returned."""
        parameters = inspect.signature(verb)

        @functools.wraps(verb)
        def record(run: Run, *args: Any, **kwargs: Any) -> Any:
            bound = parameters.bind(run, *args, **kwargs)
            bound.apply_defaults()
            try:
                content = self._content(run, verb.__name__, bound.arguments)
            except TrackingError:
                return verb(run, *args, **kwargs)  # it refuses the input, too
            number = next(self._numbers)
            self._write(call=number, run=run.run_key, verb=verb.__name__, content=content)
            started = time.perf_counter()
            answer = verb(run, *args, **kwargs)
            self._write(returned=number, timed=verb.__name__, seconds=time.perf_counter() - started)
            return answer

        return record

    def recorded_saving(self, save_model: Callable[..., Any]) -> Callable[..., Any]:
        """Return `Run.save_model` with the lines of ``log_model``, the first one when the files have been saved."""

        @functools.wraps(save_model)
        def record(run: Run, save: Callable[[Path], object], *args: Any, **kwargs: Any) -> Any:
            number = next(self._numbers)
            bound = inspect.signature(save_model).bind(run, save, *args, **kwargs)
            bound.apply_defaults()
            arguments = {key: value for key, value in bound.arguments.items() if key not in ("self", "save")}

            def save_and_note(folder: Path) -> None:
                save(folder)
                content = _DESCRIPTIONS["log_model"](None, folder, **arguments)
                self._write(call=number, run=run.run_key, verb="log_model", content=content)

            started = time.perf_counter()
            answer = save_model(run, save_and_note, *args, **kwargs)
            self._write(returned=number, timed="log_model", seconds=time.perf_counter() - started)
            return answer

        return record

    def journaled(self, append: Callable[[Session, Record], None]) -> Callable[[Session, Record], None]:
        """Return `append` of a session with a line for each record that its journal has taken."""

        @functools.wraps(append)
        def append_and_note(session: Session, record: Record) -> None:
            dropped = session.dropped
            append(session, record)
            if session.dropped == dropped:
                self._write(run=session.folder.run_key, record=encode(record).hex())

        return append_and_note

    def _content(self, run: Run, verb: str, arguments: Mapping[str, Any]) -> Any:
        names = self._names.setdefault(run, {}).setdefault(verb, SafeNames())
        return _DESCRIPTIONS[verb](names, **{name: value for name, value in arguments.items() if name != "self"})


def fingerprints(source: Path, place: str) -> dict[str, str]:
    """Return a digest of each file that `source` is or holds, by its path below `place`."""
    if source.is_dir():
        files = [path for path in source.rglob("*") if path.is_file()]
        return {f"{place}/{path.relative_to(source)}".lstrip("/"): _fingerprint(path.read_bytes()) for path in files}
    return {place: _fingerprint(source.read_bytes())}


def model_files(folder: Path) -> dict[str, str]:
    """Return digests of the files of a model, except for those that delivery completes."""
    # MLflow writes a file next to MLmodel that says which version was registered from it.
    changed = ("MLmodel", "registered_model_meta")
    return {place: print_ for place, print_ in fingerprints(folder, "").items() if place not in changed}


def _fingerprint(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _safe(names: SafeNames, key: str) -> str:
    return names.safe.get(key) or names.add(key)


def _texts(names: SafeNames, values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {_safe(names, key): cut_text(param_text(value), longest) for key, value in values.items()}


def _file(_: SafeNames, path: str | os.PathLike[str], artifact_path: str | None) -> dict[str, str]:
    return fingerprints(Path(path), f"{artifact_path or ''}/{Path(path).name}".lstrip("/"))


def _dataset(_: SafeNames, **arguments: Any) -> list[str | None]:
    dataset = describe_dataset(**arguments)
    return [dataset.name, dataset.digest, dataset.context]


_DESCRIPTIONS: dict[str, Callable[..., Any]] = {
    "log_metrics": lambda names, metrics, step: [
        [_safe(names, key), repr(to_scalar(key, value)), step or 0] for key, value in metrics.items()
    ],
    "log_params": lambda names, params: _texts(names, params, MAX_PARAM_LENGTH),
    "set_tags": lambda names, tags: _texts(names, tags, MAX_TAG_LENGTH),
    "log_artifact": _file,
    "log_artifacts": lambda _, folder, artifact_path: fingerprints(Path(folder), artifact_path or ""),
    "log_text": lambda _, text, artifact_file: {artifact_file: _fingerprint(text.encode("utf-8", "replace"))},
    "log_dataset": _dataset,
    "log_model": lambda _, mlmodel_folder, name, registered_model_name, aliases, **rest: {
        "name": name,
        "registered": registered_model_name,
        "aliases": sorted(aliases),
        "files": model_files(Path(mlmodel_folder)),
    },
}


# -- in the test ------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One call of a verb; `returned` is the time (ms) at which it was accepted, None while it was in flight."""

    run_key: str
    verb: str
    content: Any
    began: int
    returned: int | None = None


@dataclass
class Ledger:
    """What one trainer wrote down.

    Attributes:
        marks: How far training came, each mark with its time (ms).
        calls: The verbs that were called.
        records: What the journals have taken, each with the key of its run.
        seconds: The seconds that each timed call took, with its name.
    """

    marks: list[tuple[str, int]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    records: list[tuple[str, Record]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def of_run(self, run_key: str) -> Ledger:
        """Return the part that concerns one run."""
        return Ledger(
            calls=[call for call in self.calls if call.run_key == run_key],
            records=[(key, record) for key, record in self.records if key == run_key],
        )

    def taken(self, kind: type[Kind]) -> list[Kind]:
        """Return the records of a kind that the journals have taken."""
        return [record for _, record in self.records if isinstance(record, kind)]

    def contents(self, verb: str, *others: str) -> Iterator[tuple[Any, bool]]:
        """Yield what was logged by some verbs, each with whether it was accepted."""
        for call in self.calls:
            if call.verb in (verb, *others):
                yield call.content, call.returned is not None

    def time_of(self, mark: str) -> int:
        """Return the time (ms) of a mark, or of the last one if there are several."""
        return next(time_ for name, time_ in reversed(self.marks) if name == mark)

    def marked(self, beginning: str) -> list[str]:
        """Return the rest of each mark that starts with `beginning`."""
        return [mark.removeprefix(beginning) for mark, _ in self.marks if mark.startswith(beginning)]

    @property
    def run_keys(self) -> set[str]:
        """The runs that accepted something."""
        return {call.run_key for call in self.calls if call.returned is not None}


def read_ledger(*paths: Path) -> Ledger:
    """Read the ledgers of one or several trainers; skip what their forked children wrote."""
    ledger = Ledger()
    for path in paths:
        _read(ledger, path.read_text().splitlines() if path.exists() else ())
    return ledger


def _read(ledger: Ledger, texts: Iterable[str]) -> None:
    lines = [json.loads(text) for text in texts if text.endswith("}")]
    calls: dict[int, Call] = {}
    for line in lines:
        if line["pid"] != lines[0]["pid"]:
            continue
        if MARK in line:
            ledger.marks.append((line[MARK], line["time"]))
        elif "call" in line:
            calls[line["call"]] = Call(line["run"], line["verb"], line["content"], line["time"])
        elif "returned" in line:
            calls[line["returned"]].returned = line["time"]
        elif "record" in line:
            ledger.records.append((line["run"], decode(bytes.fromhex(line["record"]))))
        if "timed" in line:
            ledger.seconds.append((line["timed"], line["seconds"]))
    ledger.calls += calls.values()
