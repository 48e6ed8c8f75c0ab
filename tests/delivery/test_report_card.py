"""A run and its registered versions explain themselves, and a user's own words are never replaced."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import script, stop_delivery, wait_for
from tracking_callbacks import Delivery, MLflowTracker, Promotion, Recording
from tracking_callbacks._delivery.batches import Point
from tracking_callbacks._delivery.report_card import CardModel, is_ours, loading_call, run_card, signed
from tracking_callbacks._delivery.stores.store import DatasetUse, StoredRun

NOTE = "mlflow.note.content"


def stored(**fields: Any) -> StoredRun:
    usual: dict[str, Any] = {
        "run_id": "r1", "experiment_id": "7", "active": True, "start_time": 0, "artifact_uri": "", "params": {},
        "tags": {}, "metrics": [], "models": [], "datasets": [],
    }  # fmt: skip
    return StoredRun(**(usual | fields))


def test_a_run_says_what_was_trained_on_what_and_how_well(tracker: MLflowTracker, client, mlmodel, tmp_path) -> None:
    name = f"card-{tmp_path.name}"
    promote = Promotion("champion", by="eval/f1")
    for figure in (0.5, 0.75):
        run = tracker.start_run(f"run of {figure}", tags={"framework": "transformers", "model_type": "bert"})
        run.log_params({"base_model": "tiny/bert", "lora.default.r": 8})
        run.log_dataset("reviews", digest="abc", context="evaluation")
        run.log_metrics({"eval/f1": figure, "eval/loss": math.nan, "train/loss": 3.0}, step=2)
        run.draw("learning_curves")
        run.log_model(mlmodel, registered_model_name=name, promote=promote)
        run.end()
        assert run.flush().complete
    note = client.get_run(run.run_id).data.tags[NOTE]
    version = client.get_model_version(name, "2")

    assert note.startswith(
        "**bert** from tiny/bert, LoRA of rank 8, trained with transformers, evaluated on reviews (abc). FINISHED."
    )
    assert "- champion: eval/f1 0.75 is better than 0.5 of version 1, on the same data" in note
    assert "| metric | value | version 1 |" in note
    assert "| eval/f1 | 0.75 | 0.5 |" in note
    assert "train/loss" not in note
    place = f"#/experiments/{client.get_run(run.run_id).info.experiment_id}/runs/{run.run_id}/artifacts"
    assert f"[learning curves]({place}/figures/learning_curves.png)" in note
    assert f'mlflow.pyfunc.load_model("models:/{name}/2")' in note
    assert "champion: eval/f1 0.75 is better than 0.5" in version.description
    assert "From the run [run of 0.75](#/experiments/" in version.description
    assert "under way" not in version.description.lower()


def test_the_figures_of_a_registered_model_are_those_of_its_step(
    tracker: MLflowTracker, client, mlmodel, tmp_path
) -> None:
    """Also those of the version that held the alias, and what was measured at another step only says so."""
    name = f"card-{tmp_path.name}"
    promote = Promotion("champion", by="eval/f1")
    for best in (0.5, 0.75):
        run = tracker.start_run(tags={"framework": "f"})
        run.log_dataset("reviews", digest="abc", context="evaluation")
        for step, figure in ((2, best), (4, 0.25)):
            run.log_metrics({"eval/f1": figure, "eval/loss": 1.0 - figure, "train/loss": 3.0}, step=step)
        run.log_metrics({"test/f1": best - 0.125}, step=4)
        run.log_model(mlmodel, registered_model_name=name, promote=promote, step=2)
        run.end()
        assert run.flush().complete
    note = client.get_run(run.run_id).data.tags[NOTE]

    assert "- champion: eval/f1 0.75 is better than 0.5 of version 1, on the same data" in note
    assert [line for line in note.splitlines() if line.startswith("|")] == [
        "| metric | value at step 2 | version 1 at step 2 |",
        "| --- | --- | --- |",
        "| eval/f1 | 0.75 | 0.5 |",
        "| test/f1 | 0.625 (step 4) | 0.375 (step 4) |",
        "| eval/loss | 0.25 | 0.5 |",
    ]


def test_a_failed_run_says_why(tracker: MLflowTracker, client) -> None:
    run = tracker.start_run()
    run.log_metrics({"eval/loss": 1.0})
    run.fail(ValueError("no such file *x*"))
    assert run.flush().complete

    note = client.get_run(run.run_id).data.tags[NOTE]
    assert "FAILED." in note
    assert "- ⚠ The run failed: ValueError: no such file \\*x\\*" in note


@pytest.mark.parametrize("words", ["mine", "mine before the end"])
def test_a_users_own_words_stay(tracker: MLflowTracker, client, words: str) -> None:
    run = tracker.start_run(tags={NOTE: words} if words == "mine" else None)
    run.log_metrics({"eval/loss": 1.0})
    if words != "mine":
        run.describe()
        run.flush()
        client.set_tag(run.run_id, NOTE, words)
    run.end()
    assert run.flush().complete

    assert client.get_run(run.run_id).data.tags[NOTE] == words


def test_a_version_that_a_user_has_described_keeps_that(tracker: MLflowTracker, client, mlmodel, tmp_path) -> None:
    name = f"card-{tmp_path.name}"
    run = tracker.start_run()
    run.log_metrics({"eval/loss": 1.0})
    run.log_model(mlmodel, registered_model_name=name)
    assert run.flush().pending == 0
    client.update_model_version(name, "1", description="my own words")
    run.end()
    assert run.flush().complete

    assert client.get_model_version(name, "1").description == "my own words"


def test_nothing_is_written_where_it_is_switched_off_or_there_is_nothing_to_say(server, shared_journal, client) -> None:
    delivery = Delivery(journal_root=shared_journal)
    off = MLflowTracker(server.uri, "no card", record=Recording(description=False), delivery=delivery)
    for tracker, metrics in ((off, {"eval/loss": 1.0}), (MLflowTracker(server.uri, "no card", delivery=delivery), {})):
        with tracker.start_run() as run:
            run.log_metrics(metrics)
        assert run.flush().complete
        assert NOTE not in client.get_run(run.run_id).data.tags


def test_the_description_of_a_killed_run_says_so(server, client, tmp_path: Path) -> None:
    code = f"""
        import time
        from tracking_callbacks import Delivery, MLflowTracker
        run = MLflowTracker({server.uri!r}, "killed", delivery=Delivery(journal_root="journal")).start_run()
        run.log_metrics({{"eval/loss": 1.0}})
        run.describe()
        run.flush(30)
        print(run.run_id, flush=True)
        time.sleep(100)
    """
    with script(code, cwd=tmp_path) as trainer:
        run_id = trainer.stdout.readline().strip()
        assert "Under way." in client.get_run(run_id).data.tags[NOTE]
        trainer.send_signal(signal.SIGKILL)
        wait_for(lambda: client.get_run(run_id).info.status == "KILLED", "the run is KILLED")
        wait_for(lambda: "KILLED." in client.get_run(run_id).data.tags[NOTE], "the description says so")
    stop_delivery(tmp_path / "journal")


# -- pure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"framework": "f"}, "Training failed: RuntimeError: burst"),
        ({}, "The run failed: RuntimeError: burst"),
        ({"framework": "f", "tracking_callbacks.error": "KeyboardInterrupt"}, "Training was stopped by Ctrl-C"),
        ({"tracking_callbacks.error": "KeyboardInterrupt"}, "The run was stopped by Ctrl-C"),
    ],
)
def test_the_card_says_once_what_ended_the_run(tags: dict[str, str], said: str) -> None:
    error = tags.get("tracking_callbacks.error", "RuntimeError: burst")
    interrupted = {"tracking_callbacks.interrupted": error.partition(":")[0], "tracking_callbacks.error": error}
    card = run_card(stored(tags=interrupted | tags), "KILLED", [], [])

    assert [line for line in card.splitlines() if "⚠" in line] == [f"- ⚠ {said}"]


@given(st.text())
def test_only_an_unchanged_text_of_ours_may_be_replaced(text: str) -> None:
    assert is_ours(signed(text))
    assert is_ours("  \n")
    assert not is_ours(signed(text).replace("<!--", "more <!--", 1))
    assert not text.strip() or not is_ours(text)


@given(st.dictionaries(st.text(min_size=1), st.floats(), max_size=40), st.text(max_size=9_000))
def test_a_card_fits_into_a_tag_and_no_text_breaks_its_table(values: dict[str, float], error: str) -> None:
    metrics = [Point(f"eval/{name}", value, 0, 0) for name, value in values.items()]
    run = stored(metrics=metrics, tags={"tracking_callbacks.error": error or "x"})
    card = run_card(run, "FAILED", [CardModel("load({uri!r})", ("m", "1"))], [f"figures/{n}.png" for n in range(50)])

    assert len(signed(card)) < 5_000
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) <= 2 + 8
    assert all(len(line.replace("\\|", "").strip("|").split("|")) == 2 for line in rows)


def test_what_people_look_at_first_comes_first() -> None:
    metrics = [Point(name, 1.0, 0, 0) for name in ("eval/runtime", "eval/loss", "test/f1", "eval/f1", "rollout/fps")]
    use = DatasetUse("training", "prices", "d1")
    card = run_card(stored(metrics=metrics, datasets=[use, use]), None, [], [])

    assert [line.split()[1] for line in card.splitlines() if line.startswith("| ")] == [
        *("metric", "---", "eval/f1", "test/f1", "eval/loss", "eval/runtime"),
    ]
    assert card.count("on prices (d1)") == 1


@pytest.mark.parametrize(
    ("flavors", "call"),
    [
        (["python_function", "stable_baselines3"], 'tracking_callbacks.flavors.sb3.load_model("{uri}")'),
        (["python_function", "transformers"], 'mlflow.transformers.load_model("{uri}")'),
        (["transformers"], 'mlflow.transformers.load_model("{uri}", return_type="components")'),
        (["python_function", "pytorch"], 'mlflow.pytorch.load_model("{uri}", weights_only=False)'),
        (["python_function", "sklearn"], 'mlflow.pyfunc.load_model("{uri}")'),
    ],
)
def test_the_card_says_how_to_load_the_model(flavors: list[str], call: str) -> None:
    assert loading_call(flavors) == call


@pytest.mark.parametrize(
    ("base", "shown"),
    [("org/model", "org/model"), ("/home/me/.venv/lib/base/model", "base/model"), ("C:\\models\\bert", "models/bert")],
)
def test_a_base_model_on_one_machine_is_named_by_the_end_of_its_path(base: str, shown: str) -> None:
    card = run_card(stored(params={"base_model": base}, tags={"model_type": "bert", "framework": "f"}), None, [], [])

    assert card.startswith(f"**bert** from {shown}, trained with f")
