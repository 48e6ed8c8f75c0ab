"""The tracker on its own, read back from a real server."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from processes import own_artifacts, wait_for
from tracking_callbacks import Delivery, InputError, InvalidNameError, MetricValueError, MLflowTracker, Run
from tracking_callbacks._writing.node import node_name


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def artifacts(client, run_id: str, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run_id, path):
        found |= artifacts(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def read_text(client, run_id: str, path: str, folder) -> str:
    return Path(client.download_artifacts(run_id, path, str(folder))).read_text(encoding="utf-8")


def test_a_run_holds_what_every_verb_logged(tracker: MLflowTracker, client, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("first")
    (tmp_path / "logs" / "inner").mkdir(parents=True)
    (tmp_path / "logs" / "inner" / "a.log").write_text("a")
    with tracker.start_run("everything", tags={"team": "nlp"}) as run:
        run.log_params({"lr": 1e-4, "layers": [1, 2], "flag": True})
        run.log_metrics({"loss": 0.5, "tensor": np.float32(0.25), "one": np.array([3])}, step=7)
        run.set_tags({"stage": "dev"})
        run.log_artifact(tmp_path / "notes.txt", "texts")
        (tmp_path / "notes.txt").write_text("overwritten after the call")
        run.log_artifact(tmp_path / "logs")
        run.log_artifacts(tmp_path / "logs", "flat")
        run.log_dict({"api_key": "sk-1", "values": {2, 1}}, "config/made.json")
        run.log_dict({"a": 1}, "config/made.yaml")
        run.log_text("héllo", "text.txt")
        run.log_dataset("reviews", schema={"text": "string"}, size=3000, context="training")
    report = run.flush()

    assert report.complete
    assert (report.pending, report.rejected, report.dropped) == (0, 0, 0)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "everything"
    assert stored.data.params == {"lr": "0.0001", "layers": "[1, 2]", "flag": "True"}
    assert stored.data.metrics == {"loss": 0.5, "tensor": 0.25, "one": 3.0}
    assert history(client, run.run_id, "loss") == [(7, 0.5)]
    assert stored.data.tags["team"] == "nlp"
    assert stored.data.tags["stage"] == "dev"
    assert set(own_artifacts(client, run.run_id)) == {
        *("texts/notes.txt", "logs/inner/a.log", "flat/inner/a.log"),
        *("config/made.json", "config/made.yaml", "text.txt"),
    }
    assert read_text(client, run.run_id, "texts/notes.txt", tmp_path) == "first"
    assert json.loads(read_text(client, run.run_id, "config/made.json", tmp_path)) == {
        "api_key": "***",
        "values": [1, 2],
    }
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, json.loads(dataset.dataset.profile)) == ("reviews", {"num_rows": 3000})
    assert dataset.tags[0].value == "training"


def test_figures_of_matplotlib_and_plotly_become_artifacts(tracker: MLflowTracker, client, tmp_path) -> None:
    plotly = pytest.importorskip("plotly.graph_objects")
    from matplotlib.figure import Figure

    with tracker.start_run() as run:
        for place in ("plots/a.png", "plots/b.SVG"):
            run.log_figure(Figure(), place)
        run.log_figure(plotly.Figure(plotly.Bar(y=[2, 3])), "plots/c.html")
    report = run.flush()

    assert (report.rejected, report.dropped) == (0, 0)
    assert own_artifacts(client, run.run_id) == ["plots/a.png", "plots/b.SVG", "plots/c.html"]
    page = read_text(client, run.run_id, "plots/c.html", tmp_path)
    assert '"y":[2,3]' in page
    assert len(page) < 100_000


def test_what_is_no_figure_or_does_not_fit_its_ending_is_refused(tracker: MLflowTracker, client) -> None:
    plotly = pytest.importorskip("plotly.graph_objects")
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    with tracker.start_run() as run:
        for wrong in (None, "a.png", np.zeros((2, 2)), Figure, plotly.Figure, axes, pyplot):
            with pytest.raises(InputError, match="log_figure: expected a figure of matplotlib or plotly"):
                run.log_figure(wrong, "a.png")
        with pytest.raises(InputError, match=r"ends in \.html for a plotly figure, got 'a\.png'"):
            run.log_figure(plotly.Figure(), "a.png")
        for place in ("a.html", "a", "a.nothing"):
            with pytest.raises(InputError, match=r"one of .*\.png.* for a matplotlib figure"):
                run.log_figure(Figure(), place)
    report = run.flush()

    assert (report.delivered, report.complete) == (0, True)
    assert own_artifacts(client, run.run_id) == []


def test_points_keep_their_own_time_and_step_and_order(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        for step in range(2500):
            run.log_metrics({"loss": 1 / (step + 1), "lr": 0.1}, step=step)
    run.flush()

    assert history(client, run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(2500)]
    times = [point.timestamp for point in client.get_metric_history(run.run_id, "loss")]
    assert times == sorted(times)
    info = client.get_run(run.run_id).info
    assert info.start_time <= times[0] <= times[-1] <= info.end_time


def test_true_repeats_within_a_millisecond_all_arrive(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        for _ in range(50):
            run.log_metrics({"same": 1.0, "nan": math.nan}, step=3)
    run.flush()

    assert len(client.get_metric_history(run.run_id, "same")) == 50
    assert len(client.get_metric_history(run.run_id, "nan")) == 50


def test_values_that_json_cannot_represent_survive(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        run.log_metrics({"nan": math.nan, "inf": math.inf, "minus_inf": -math.inf, "tiny": 5e-324})
    run.flush()

    stored = client.get_run(run.run_id).data.metrics
    assert math.isnan(stored["nan"])
    assert stored["inf"] == pytest.approx(1.797e308, rel=1e-3)
    assert stored["minus_inf"] == pytest.approx(-1.797e308, rel=1e-3)
    assert stored["tiny"] == 5e-324


def test_names_that_mlflow_refuses_are_changed_and_stay_distinct(tracker: MLflowTracker, client) -> None:
    names = ["a//b", "/lead", "../up", "emoji 🚀", "emoji 🎉", "x" * 300, "x" * 299 + "y", "ünï/cödé", "a\\b"]
    with tracker.start_run() as run:
        run.log_metrics({name: float(index) for index, name in enumerate(names)})
        run.log_params(dict.fromkeys(names, "v"))
        run.set_tags(dict.fromkeys(names, "t"))
    report = run.flush()

    stored = client.get_run(run.run_id).data
    assert report.rejected == 0
    assert sorted(stored.metrics.values()) == list(range(len(names)))
    assert len(stored.params) == len(names)
    assert "ünï/cödé" in stored.metrics


def test_long_params_are_truncated_and_kept_in_full_in_a_file(tracker: MLflowTracker, client, tmp_path) -> None:
    with tracker.start_run() as run:
        run.log_params({"long": "x" * 6001, "fits": "y" * 6000})
        run.log_params({f"p{index}": index for index in range(1234)})
    run.flush()

    params = client.get_run(run.run_id).data.params
    assert len(params["long"]) == 6000
    assert params["fits"] == "y" * 6000
    assert read_text(client, run.run_id, "params/long.txt", tmp_path) == "x" * 6001
    assert len(params) == 1236


def test_a_changed_param_keeps_its_first_value_and_tags_the_later_ones(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        run.log_params({"lr": 1, "other": "same"})
        run.flush()
        run.log_params({"lr": 2, "other": "same", "new": "arrives"})
    report = run.flush()

    stored = client.get_run(run.run_id).data
    assert (report.rejected, report.pending, report.complete) == (0, 0, True)
    assert stored.params == {"lr": "1", "other": "same", "new": "arrives"}
    assert stored.tags["param_drift.lr"] == "2"
    assert "tracking_callbacks.rejected" not in stored.tags
    assert own_artifacts(client, run.run_id) == []


def test_nested_runs_carry_their_parents_id(tracker: MLflowTracker, client) -> None:
    with tracker.start_run("parent") as parent:
        with tracker.start_run("child", parent=parent) as child:
            child.log_metrics({"loss": 1.0})
        with tracker.start_run("by id", parent=parent.run_id) as other:
            pass
    for run in (parent, child, other):
        run.flush()

    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(other.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_more_can_be_logged_after_the_end_and_the_status_stays(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        run.log_metrics({"loss": 1.0})
    assert run.flush().complete
    ended = client.get_run(run.run_id).info.end_time
    run.log_metrics({"late": 2.0})
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    assert stored.data.metrics == {"loss": 1.0, "late": 2.0}
    assert (stored.info.status, stored.info.end_time) == ("FINISHED", ended)


def test_a_reopened_run_is_running_until_it_ends_again(tracker: MLflowTracker, client) -> None:
    run = tracker.start_run()
    run.end()
    assert run.flush().complete
    run.reopen()
    run.log_metrics({"more": 1.0})
    assert run.flush().complete
    running = client.get_run(run.run_id).info
    run.end("FAILED")
    assert run.flush().complete

    ended = client.get_run(run.run_id).info
    assert running.status == "RUNNING"
    assert ended.status == "FAILED"
    assert ended.end_time > running.end_time  # MLflow 3.17 keeps the first end time while it is RUNNING again


def test_a_run_of_the_server_is_continued_by_its_id(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as first:
        first.log_metrics({"loss": 1.0}, step=1)
    assert first.flush().complete
    with tracker.start_run(run_id=first.run_id) as second:
        second.log_metrics({"loss": 0.5}, step=2)
    assert second.flush().complete

    assert history(client, first.run_id, "loss") == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("boom"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_with_block_sets_the_correct_status(tracker: MLflowTracker, client, error, status, tmp_path) -> None:
    with pytest.raises(type(error)), tracker.start_run() as run:
        raise error
    run.flush()

    stored = client.get_run(run.run_id)
    assert stored.info.status == status
    if status == "FAILED":
        assert stored.data.tags["tracking_callbacks.error"] == "ValueError: boom"
        assert "raise error" in read_text(client, run.run_id, "error.txt", tmp_path)


@pytest.mark.parametrize("known_by", ["run_key", "run_id"])
def test_another_machine_joins_with_its_system_metrics_alone(
    tracker: MLflowTracker, client, tmp_path, monkeypatch, known_by: str
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    there = MLflowTracker(
        *(tracker.settings.tracking_uri, tracker.settings.experiment_name),
        tags={"not": "there"},
        delivery=Delivery(journal_root=tmp_path / "another machine"),
    )
    run = tracker.start_run("main", run_key=f"main-{tmp_path.name}") if known_by == "run_id" else None
    joined = there.join_node(f"main-{tmp_path.name}") if run is None else there.join_node(run_id=run.run_id)
    run = run or tracker.start_run("main", run_key=f"main-{tmp_path.name}")  # joined before it has begun
    assert run.run_id is not None
    key = f"system/{os.uname().nodename}/cpu_utilization_percentage"
    wait_for(lambda: key in client.get_run(run.run_id).data.metrics, "the samples of the other machine arrive")
    joined.fail(ValueError("of the other machine"))
    assert joined.flush().complete
    assert client.get_run(run.run_id).info.status == "RUNNING"
    run.end()

    assert run.flush().complete
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert "not" not in stored.data.tags
    assert all(name.startswith("system/") for name in stored.data.metrics)
    found = client.search_runs([stored.info.experiment_id], "tags.`mlflow.runName` = 'main'")
    assert [one.info.run_id for one in found] == [run.run_id]


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, ""),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}, ""),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}, "node_0"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "SLURM_NODEID": "7"}, "node_1"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "1"}, "node_1"),
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "1", "CROSS_RANK": "1"}, "node_1"),
        ({"WORLD_SIZE": "2", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}, "node_1"),
        ({"SLURM_NNODES": "2", "SLURM_NODEID": "1"}, ""),
        ({"WORLD_SIZE": "many", "LOCAL_WORLD_SIZE": "", "GROUP_RANK": "-1"}, ""),
    ],
)
def test_a_machine_has_a_name_where_several_train_together(variables: dict[str, str], name: str) -> None:
    assert node_name(variables) == name


def test_threads_may_share_a_run(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        threads = [
            threading.Thread(target=lambda name=name: [run.log_metrics({name: i}, step=i) for i in range(300)])
            for name in ("a", "b", "c", "d")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run.flush()

    for name in ("a", "b", "c", "d"):
        assert history(client, run.run_id, name) == [(i, i) for i in range(300)]


def test_source_tags_match_those_of_mlflow_start_run(tracker: MLflowTracker, client) -> None:
    with tracker.start_run() as run:
        pass
    run.flush()

    tags = client.get_run(run.run_id).data.tags
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)


class TestBadInput:
    """Wrong input is named at the call, and nothing already logged is lost."""

    @pytest.fixture
    def run(self, tmp_path) -> Run:
        return MLflowTracker(
            "http://127.0.0.1:9", delivery=Delivery(journal_root=tmp_path / "journal", offline=True)
        ).start_run()

    @pytest.mark.parametrize("name", ["", "  ", None, 3])
    def test_an_invalid_name(self, run: Run, name) -> None:
        for verb in (run.log_metrics, run.log_params, run.set_tags):
            with pytest.raises(InvalidNameError, match="expected a name"):
                verb({name: 1.0})

    @pytest.mark.parametrize("value", ["0.5", None, [1.0], np.array([1.0, 2.0]), 1j, {}])
    def test_a_metric_value_that_is_not_one_number(self, run: Run, value) -> None:
        with pytest.raises(MetricValueError, match=r"'loss'.*expected one number"):
            run.log_metrics({"loss": value})

    @pytest.mark.parametrize("step", ["3", 1.5, 2**63])
    def test_a_step_that_is_not_an_integer(self, run: Run, step) -> None:
        with pytest.raises(InputError, match="step: expected"):
            run.log_metrics({"loss": 1.0}, step=step)

    def test_missing_artifacts_and_paths_that_lead_outside_the_run(self, run: Run, tmp_path) -> None:
        with pytest.raises(InputError, match="nothing at"):
            run.log_artifact(tmp_path / "absent")
        with pytest.raises(InputError, match="expected a folder"):
            run.log_artifacts(tmp_path / "pyproject.toml")
        with pytest.raises(InputError, match="inside the run's artifacts"):
            run.log_text("x", "../outside.txt")
        with pytest.raises(InputError, match="MLmodel"):
            run.log_model(tmp_path)

    def test_a_picture_of_no_known_kind_or_without_its_data(self, run: Run) -> None:
        with pytest.raises(InputError, match=r"kind: expected one of learning_curves, .*, got 'nonsense'"):
            run.draw("nonsense")
        with pytest.raises(InputError, match="data: expected what confusion_matrix is drawn from"):
            run.draw("confusion_matrix")

    def test_a_joined_run_that_is_not_named_once(self, tracker: MLflowTracker) -> None:
        with pytest.raises(InputError, match="run_key or run_id"):
            tracker.join_node()
        with pytest.raises(InputError, match="run_key or run_id"):
            tracker.join_node("key", run_id="id")
        with pytest.raises(InputError, match="key of a run"):
            tracker.join_node("no/key")

    def test_an_unknown_status(self, run: Run) -> None:
        with pytest.raises(InputError, match="FINISHED, FAILED, KILLED"):
            run.end("DONE")

    def test_records_logged_before_the_bad_input_are_kept(self, run: Run) -> None:
        run.log_metrics({"loss": 1.0})
        with pytest.raises(MetricValueError):
            run.log_metrics({"good": 1.0, "bad": "x"})
        run.end()

        assert run.report().pending == 1
