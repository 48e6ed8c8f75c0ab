"""An alias moves to a new version only if that is better than the holder, on the same data."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import script, stop_delivery
from tracking_callbacks import ConfigError, Delivery, InputError, MLflowTracker, Promotion, Run
from tracking_callbacks._delivery.batches import Point
from tracking_callbacks._delivery.failures import DeliveryError, NotYetVisible, Transient
from tracking_callbacks._delivery.once import Once
from tracking_callbacks._delivery.promotion import Contender, best_of, deliver_promotion
from tracking_callbacks._delivery.stores.store import StoredVersion
from tracking_callbacks._journal.layout import LoggedModel, RunState
from tracking_callbacks._journal.records import Promote
from tracking_callbacks._values.promotion import is_greater_better

BY_F1 = Promotion("champion", by="eval/f1")


@dataclass
class Registry:
    """A registered model of the test's own, in which the runs of the test register versions."""

    tracker: MLflowTracker
    client: Any
    mlmodel: Path
    name: str
    count: int = 0

    def register(
        self,
        figure: float | None,
        promote: Promotion | None = BY_F1,
        *,
        data: str | None = "reviews",
        step: int | None = 3,
        at: int = 3,
        **more: Any,
    ) -> str:
        """Register a version whose run has this figure, and return the version's number."""
        run = self.trained(figure, data=data, at=at)
        run.log_model(self.mlmodel, registered_model_name=self.name, step=step, promote=promote, **more)
        run.end()
        return self.delivered(run)

    def trained(self, figure: float | None, *, data: str | None = "reviews", at: int = 3) -> Run:
        run = self.tracker.start_run()
        if data is not None:
            run.log_dataset("reviews", digest=data, context="evaluation")
        run.log_metrics({"eval/f1": 0.1, "eval/loss": 2.0}, step=0)
        if figure is not None:
            run.log_metrics({"eval/f1": figure}, step=at)
        return run

    def delivered(self, run: Run) -> str:
        assert run.flush().complete
        assert not run.report().rejected
        self.count += 1
        return str(self.count)

    def holder(self, alias: str = "champion") -> str | None:
        version = self.client.get_registered_model(self.name).aliases.get(alias)
        return None if version is None else str(version)

    def outcome(self, version: str) -> str:
        return self.client.get_model_version(self.name, version).tags["tracking_callbacks.promotion.outcome"]


@pytest.fixture
def registry(tracker: MLflowTracker, client: Any, mlmodel: Path, tmp_path: Path) -> Registry:
    return Registry(tracker, client, mlmodel, f"promoted-{tmp_path.name}")


def test_the_better_version_takes_the_alias_and_the_worse_one_does_not(registry: Registry) -> None:
    first, worse, equal, better = (registry.register(figure) for figure in (0.8, 0.7, 0.8, 0.9))

    assert registry.holder() == better
    assert registry.outcome(first) == "champion: no version held it; eval/f1 0.8"
    assert registry.outcome(worse) == "not champion: eval/f1 0.7 is not better than 0.8 of version 1, on the same data"
    assert registry.outcome(equal) == "not champion: eval/f1 0.8 is not better than 0.8 of version 1, on the same data"
    assert registry.outcome(better) == "champion: eval/f1 0.9 is better than 0.8 of version 1, on the same data"


def test_of_a_loss_the_lower_one_is_better(registry: Registry) -> None:
    promote = Promotion("champion", by="eval/loss")
    run = registry.tracker.start_run()
    run.log_dataset("reviews", digest="reviews", context="evaluation")
    run.log_metrics({"eval/loss": 0.5}, step=1)
    run.log_model(registry.mlmodel, registered_model_name=registry.name, promote=promote)
    run.end()
    registry.delivered(run)
    worse = registry.register(0.9, promote, step=0)

    assert registry.holder() == "1"
    assert "eval/loss 2 is not better than 0.5 of version 1" in registry.outcome(worse)


def test_figures_of_different_or_unknown_data_are_not_compared(registry: Registry) -> None:
    registry.register(0.5)
    other, unknown = registry.register(0.9, data="tweets"), registry.register(0.9, data=None)

    assert registry.holder() == "1"
    assert "were measured on different data (tweets and reviews)" in registry.outcome(other)
    assert "it is not known which data they were measured on" in registry.outcome(unknown)


def test_the_users_own_name_for_the_data_counts(registry: Registry) -> None:
    promote = Promotion("champion", by="eval/f1", data="held out 2026")
    registry.register(0.5, promote, data=None)
    better = registry.register(0.9, promote, data="another digest")

    assert registry.holder() == better


def test_a_gain_below_the_minimum_moves_nothing(registry: Registry) -> None:
    promote = Promotion("champion", by="eval/f1", minimum_gain=0.02)
    registry.register(0.81, promote)
    small = registry.register(0.82, promote)
    assert registry.holder() == "1"
    assert "is better than 0.81 of version 1 by less than 0.02" in registry.outcome(small)
    enough = registry.register(0.83, promote)

    assert registry.holder() == enough


def test_the_loser_becomes_challenger_where_that_is_asked_for(registry: Registry) -> None:
    promote = Promotion("champion", by="eval/f1", challenger="challenger")
    first, worse = registry.register(0.8, promote), registry.register(0.7, promote)
    assert (registry.holder(), registry.holder("challenger")) == (first, worse)
    better = registry.register(0.9, promote)

    assert (registry.holder(), registry.holder("challenger")) == (better, first)


def test_the_figure_is_that_of_the_models_own_step(registry: Registry) -> None:
    registry.register(0.8)
    late = registry.register(0.95, step=2)
    unknown = registry.register(math.nan)

    assert registry.holder() == "1"
    assert registry.outcome(late) == "not compared: the run has no eval/f1 at step 2, the step of the model"
    assert registry.outcome(unknown) == "not compared: eval/f1 is not a number at step 3, the step of the model"


def test_a_metric_that_is_spelt_otherwise_is_named(registry: Registry) -> None:
    version = registry.register(0.8, Promotion("champion", by="eval_F1"))

    assert registry.outcome(version).endswith("the run has no eval_F1 at step 3, the step of the model; it has eval/f1")


def test_an_evaluation_after_training_counts(registry: Registry) -> None:
    registry.register(0.8)
    run = registry.trained(None)
    run.log_model(registry.mlmodel, registered_model_name=registry.name, step=3, promote=BY_F1)
    run.end()
    version = registry.delivered(run)
    assert registry.outcome(version).startswith("not compared")
    run.log_metrics({"eval/f1": 0.9}, step=3)
    run.compare_again(["eval/loss", "eval/f1"])
    assert run.flush().complete

    assert registry.holder() == version


def test_a_champion_from_elsewhere_is_compared_by_its_own_run(registry: Registry) -> None:
    registry.register(0.8, None, aliases=["champion"])
    worse = registry.register(0.7)
    assert registry.holder() == "1"
    assert "is not better than 0.8 of version 1" in registry.outcome(worse)
    better = registry.register(0.9)

    assert registry.holder() == better


def test_a_champion_without_the_figure_keeps_the_alias(registry: Registry, server) -> None:
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, source=registry.mlmodel.as_uri().replace("file:", "s3:"))
    registry.client.set_registered_model_alias(registry.name, "champion", "1")
    registry.count = 1
    version = registry.register(0.9)

    assert registry.holder() == "1"
    assert "version 1 holds it, and has no eval/f1 to compare 0.9 with" in registry.outcome(version)


def test_the_alias_of_a_deleted_champion_is_free(registry: Registry) -> None:
    registry.register(0.9)
    registry.client.delete_model_version(registry.name, "1")
    version = registry.register(0.5)

    assert registry.holder() == version


def test_an_alias_that_a_user_has_moved_back_stays(registry: Registry) -> None:
    registry.register(0.8)
    registry.register(0.9)
    registry.client.set_registered_model_alias(registry.name, "champion", "1")  # version 2 had a bug
    between = registry.register(0.85)

    assert registry.holder() == between
    assert "is better than 0.8 of version 1" in registry.outcome(between)


def test_an_older_offline_run_does_not_win_by_coming_last(registry: Registry, server, tmp_path: Path) -> None:
    root = tmp_path / "offline"
    offline = MLflowTracker(server.uri, "offline", delivery=Delivery(journal_root=root, offline=True))
    registry.tracker, online = offline, registry.tracker
    run = registry.trained(0.7)
    run.log_model(registry.mlmodel, registered_model_name=registry.name, step=3, promote=BY_F1)
    run.end()
    registry.tracker = online
    registry.register(0.9)
    with script(
        """
        from tracking_callbacks.cli import main
        main(["sync", "offline"])
        """,
        cwd=tmp_path,
    ) as sync:
        assert sync.wait(60) == 0

    assert registry.holder() == "1"
    assert "eval/f1 0.7 is not better than 0.9 of version 1" in registry.outcome("2")


def test_of_eight_racing_trainers_the_best_holds_the_alias(registry: Registry, server, tmp_path: Path) -> None:
    figures = [0.61, 0.68, 0.65, 0.69, 0.62, 0.67, 0.66, 0.64]
    code = f"""
        import sys, time
        from pathlib import Path
        from tracking_callbacks import Delivery, MLflowTracker, Promotion
        figure, key = sys.stdin.readline().split()
        tracker = MLflowTracker({server.uri!r}, "race", delivery=Delivery(journal_root=key))
        run = tracker.start_run()
        run.log_dataset("reviews", digest="reviews", context="evaluation")
        run.log_metrics({{"eval/f1": float(figure)}}, step=3)
        assert run.flush(60).complete or run.report().pending == 0
        print("ready", flush=True)
        sys.stdin.readline()
        run.log_model({str(registry.mlmodel)!r}, registered_model_name={registry.name!r}, step=3,
                      promote=Promotion("champion", by="eval/f1"))
        run.end()
        sys.exit(0 if run.flush(60).complete else 3)
    """
    with ExitStack() as stack:
        racers = [stack.enter_context(script(code, cwd=tmp_path)) for _ in figures]
        for number, (racer, figure) in enumerate(zip(racers, figures, strict=True)):
            print(figure, f"journal-{number}", file=racer.stdin, flush=True)
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * len(figures)
        for racer in racers:
            print(file=racer.stdin, flush=True)
        assert [racer.wait(90) for racer in racers] == [0] * len(figures)
    for number in range(len(figures)):
        stop_delivery(tmp_path / f"journal-{number}")
    found = {
        version.version: float(version.tags["tracking_callbacks.promotion.figure"])
        for version in registry.client.search_model_versions(f"name='{registry.name}'")
    }

    assert sorted(found.values()) == sorted(figures)
    assert found[registry.holder()] == max(figures)


# -- what the arguments say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval/f1", True), ("eval/f1_macro", True), ("eval/news/accuracy", True), ("eval/sharpe_ratio", True),
        ("eval/mean_reward", True), ("eval/roc_auc", True), ("eval/loss", False), ("eval/rmse", False),
        ("eval/mean_squared_error", False), ("eval/perplexity", False), ("eval/turnover", None), ("loss/eval", None),
    ],
)  # fmt: skip
def test_the_name_tells_whether_greater_is_better(metric: str, greater: bool | None) -> None:
    assert is_greater_better(metric) is greater


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alias": "champion", "by": "eval/turnover"}, "greater_is_better: expected True or False"),
        ({"alias": "latest", "by": "eval/f1"}, "reserved by MLflow"),
        ({"alias": "champion", "by": " "}, "by: expected a text"),
        ({"alias": "champion", "by": "eval/f1", "minimum_gain": -1}, "a number, 0 or more"),
        ({"alias": "champion", "by": "eval/f1", "challenger": "champion"}, "challenger: expected another alias"),
        ({"alias": "champion"}, "by is missing"),
        ({"alias": "champion", "by": "eval/f1", "aliass": "x"}, "unknown key 'aliass'"),
        ("champion", "expected a Promotion or its fields, got 'champion'"),
    ],
)
def test_what_cannot_be_promoted_is_said_when_the_callback_is_made(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Promotion.from_argument(fields)


def test_a_promotion_needs_a_registered_model(registry: Registry) -> None:
    with registry.tracker.start_run() as run, pytest.raises(InputError, match="needs a registered_model_name"):
        run.log_model(registry.mlmodel, promote=BY_F1)
    run.flush()


def test_the_config_file_promotes_every_registered_model(registry: Registry, server, shared_journal) -> None:
    Path("mlflow.yaml").write_text(
        f"tracking_uri: {server.uri}\npromote:\n  alias: best\n  by: eval/f1\n  challenger: next\n"
        f"delivery:\n  journal_root: {shared_journal}\n"
    )
    registry.tracker = MLflowTracker(config="mlflow.yaml")
    registry.register(0.5, None)
    registry.register(0.4, None)

    assert (registry.holder("best"), registry.holder("next")) == ("1", "2")


# -- every order in which deliveries can get in each other's way -----------------------------------------------------


class Killed(Exception):
    """Ends a delivery process in the middle."""


class Turns:
    """Lets one of several threads at a time carry out its next call, in an order that the test chooses."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._waiting: dict[str, threading.Event] = {}
        self._running = 0
        self._changed = threading.Condition()
        self.killed: set[str] = set()

    def begin(self) -> None:
        with self._changed:
            self._running += 1

    def end(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify()

    def wait(self, name: str) -> None:
        mine = threading.Event()
        with self._changed:
            self._waiting[name] = mine
            self._running -= 1
            self._changed.notify()
        mine.wait()
        if name in self.killed:
            self.killed.discard(name)
            raise Killed

    def serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
                if not self._waiting:
                    return
                name = sorted(self._waiting)[self._choose(len(self._waiting))]
                self._running += 1
                self._waiting.pop(name).set()


@dataclass
class Shared:
    """A registered model as all deliveries see it."""

    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    alias: str | None = None


class InTurns:
    """The calls of a store that a comparison needs, each at a time that the test chooses."""

    def __init__(self, shared: Shared, turns: Turns, name: str, figure: float) -> None:
        self.shared, self.turns, self.name, self.figure = shared, turns, name, figure

    def history(self, run_id: str, key: str) -> Iterator[Point]:
        return iter([Point(key, self.figure, 1, 3)])

    def tag_version(self, name: str, version: str, tags: dict[str, str]) -> None:
        self.turns.wait(self.name)
        self.shared.tags[version] |= tags

    def versions(self, name: str) -> list[StoredVersion]:
        self.turns.wait(self.name)
        return [StoredVersion(name, version, dict(tags)) for version, tags in self.shared.tags.items()]

    def version(self, name: str, version: str) -> StoredVersion:
        self.turns.wait(self.name)
        return StoredVersion(name, version, dict(self.shared.tags[version]))

    def aliases(self, name: str) -> dict[str, str]:
        self.turns.wait(self.name)
        return {} if self.shared.alias is None else {"champion": self.shared.alias}

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.turns.wait(self.name)
        self.shared.alias = version


class Process:
    """A delivery process with the state that outlives it."""

    def __init__(self, shared: Shared, turns: Turns, version: str, figure: float, gain: float) -> None:
        self.turns, self.version = turns, version
        self.store: Any = InTurns(shared, turns, version, figure)
        self.record = Promote(f"key {version}", "model", "champion", "eval/f1", True, gain, step=3, data="same")
        key = self.record.record_key
        logged = {key: LoggedModel(["pytorch"], "model")}
        self.saved = msgspec.json.encode(RunState(versions={key: version}, models=logged))
        self.failure: BaseException | None = None

    def deliver(self) -> None:
        try:
            while True:
                state = msgspec.json.decode(self.saved, type=RunState)

                def save(state: RunState = state) -> None:
                    self.saved = msgspec.json.encode(state)

                once = Once(state.attempts, save)
                try:
                    deliver_promotion(self.store, once, "run", self.record, state)
                    return
                except Killed:
                    continue  # started again, from what was saved
                except NotYetVisible:  # it was killed while it moved the alias; the time that it has to wait is over
                    state.attempts.clear()
                    save()
        except (AssertionError, LookupError, TypeError, DeliveryError) as error:
            self.failure = error
        finally:
            self.turns.end()


@settings(max_examples=150)
@given(
    figures=st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]), min_size=2, max_size=4),
    champion=st.sampled_from([None, 0.65]),
    gain=st.sampled_from([0.0, 0.1]),
    order=st.lists(st.integers(0, 100), max_size=120),
    kills=st.sets(st.integers(0, 60), max_size=3),
)
def test_in_every_order_the_best_version_holds_the_alias_in_the_end(
    figures: list[float], champion: float | None, gain: float, order: list[int], kills: set[int]
) -> None:
    shared = Shared()
    if champion is not None:
        outcome = {"alias": "champion", "by": "eval/f1", "figure": str(champion), "data": "same", "outcome": "champion"}
        shared.tags["1"] = {f"tracking_callbacks.promotion.{key}": text for key, text in outcome.items()}
        shared.alias = "1"
    turn = 0

    def choose(count: int) -> int:
        nonlocal turn
        turn += 1
        chosen = order[turn % len(order)] % count if order else 0
        if turn in kills:
            turns.killed.add(sorted(turns._waiting)[chosen])
        return chosen

    turns = Turns(choose)
    processes = [Process(shared, turns, str(number), figure, gain) for number, figure in enumerate(figures, 2)]
    shared.tags |= {process.version: {} for process in processes}
    threads = [threading.Thread(target=process.deliver) for process in processes]
    for thread in threads:
        turns.begin()
        thread.start()
    turns.serve()
    for thread in threads:
        thread.join(10)

    assert [process.failure for process in processes] == [None] * len(processes)
    everyone = {process.version: figure for process, figure in zip(processes, figures, strict=True)}
    held = everyone.get(shared.alias or "", champion)
    if gain == 0:
        assert held == max([*figures, champion or 0.0])
    else:  # where one comparison was over before another began, the later version needs the gain, too
        assert held is not None
        assert max(figures) - held < gain + 1e-9 or held == max(figures)
        assert champion is None or held == champion or held >= champion + gain - 1e-9


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, math.nan, None]), st.sampled_from(["a", "b", None]))),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_contenders_changes_nothing(
    drawn: list[tuple[float | None, str | None]], greater: bool, random: Any
) -> None:
    contenders = [Contender(str(number), *one) for number, one in enumerate(drawn, 1)]
    shuffled = contenders[:]
    random.shuffle(shuffled)

    assert best_of(None, contenders, greater_is_better=greater) == best_of(None, shuffled, greater_is_better=greater)


def test_the_command_line_says_why_a_version_is_champion(registry: Registry, server, tmp_path: Path) -> None:
    registry.register(0.8, aliases=["first"])
    registry.register(0.9)

    def models(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tracking_callbacks.cli", "models", *arguments],
            env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    table = models(registry.name, MLFLOW_TRACKING_URI=server.uri)
    rows = json.loads(models("--json", "--tracking-uri", server.uri).stdout)
    (tmp_path / "none.db").touch()  # `models` makes no store
    local = models(f"--tracking-uri=sqlite:///{tmp_path}/none.db")
    unknown = models("no-such-model", MLFLOW_TRACKING_URI=server.uri)

    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["MODEL", "VERSION", "ALIASES", "METRIC", "FIGURE", "DATA", "OUTCOME"]
    assert lines[1][:6] == [registry.name, "1", "first", "eval/f1", "0.8", "reviews"]
    assert lines[2][:6] == [registry.name, "2", "champion", "eval/f1", "0.9", "reviews"]
    assert "better than 0.8 of version 1" in table.stdout
    mine = [row for row in rows if row["model"] == registry.name]
    assert [(row["version"], row["aliases"], row["figure"]) for row in mine] == [
        ("1", ["first"], 0.8),
        ("2", ["champion"], 0.9),
    ]
    assert (local.returncode, local.stdout) == (0, "No model is registered.\n")
    assert unknown.returncode == 1
    assert "no-such-model" in unknown.stderr


class Flaky(InTurns):
    """Fails to set the challenger at the first time."""

    challenger: str | None = None
    failed = False

    def set_alias(self, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            self.shared.alias = version
        elif not self.failed:
            self.failed = True
            raise Transient("away")
        else:
            self.challenger = version


def test_a_challenger_that_could_not_be_set_is_set_by_the_next_attempt() -> None:
    outcome = {"alias": "champion", "by": "eval/f1", "figure": "0.5", "data": "same", "outcome": "champion"}
    shared = Shared({"1": {f"tracking_callbacks.promotion.{key}": text for key, text in outcome.items()}, "2": {}}, "1")
    turns = Turns(lambda _: 0)
    turns.wait = lambda name: None  # type: ignore[method-assign]
    store = Flaky(shared, turns, "2", 0.9)
    record = Promote("key", "model", "champion", "eval/f1", True, 0.0, "challenger", step=3, data="same")
    state = RunState(versions={"key": "2"}, models={"key": LoggedModel(["pytorch"], "model")})
    once = Once(state.attempts, lambda: None)
    with pytest.raises(Transient):
        deliver_promotion(store, once, "run", record, state)  # type: ignore[arg-type]
    deliver_promotion(store, once, "run", record, state)  # type: ignore[arg-type]

    assert (shared.alias, store.challenger) == ("2", "1")
    assert state.promotions["key"].outcome == "champion: eval/f1 0.9 is better than 0.5 of version 1, on the same data"
