"""From an MLmodel folder to a registered model that loads, without mlflow's own log_model."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.proxy import Fault, running_proxy
from tracking_callbacks import ConfigError, Delivery, InputError, MLflowTracker, TrackingError


def test_a_model_is_logged_linked_registered_and_loads(
    tracker: MLflowTracker, client, server, mlmodel, tmp_path
) -> None:
    import mlflow

    name = f"doubler-{tmp_path.name}"
    with tracker.start_run() as run:
        run.log_params({"factor": 2})
        run.log_metrics({"eval/loss": 0.5}, step=4)
        run.log_metrics({"eval/loss": 0.25}, step=9)
        run.log_model(mlmodel, registered_model_name=name, aliases=["champion"], tags={"task": "double"})
        (mlmodel / "MLmodel").unlink()
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    (output,) = stored.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    version = client.get_model_version_by_alias(name, "champion")
    assert (version.version, version.run_id, version.tags["task"]) == ("1", run.run_id, "double")
    assert (str(model.status), model.name, model.source_run_id) == ("READY", "model", run.run_id)
    assert model.params == {"factor": "2"}
    assert model.tags["mlflow.user"] == stored.data.tags["mlflow.user"]
    assert '"version": "1"' in model.tags["mlflow.modelVersions"]
    assert [(m.key, m.value, m.step, m.run_id) for m in model.metrics] == [("eval/loss", 0.25, 9, run.run_id)]
    assert [(p.step, p.value) for p in client.get_metric_history(run.run_id, "eval/loss")] == [(4, 0.5), (9, 0.25)]
    mlflow.set_tracking_uri(server.uri)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        assert loaded.predict([1.0, 2.0]) == [2.0, 4.0]
        assert loaded.metadata.run_id == run.run_id
        assert loaded.metadata.model_id == output.model_id
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("kind", ["cut", "answer"])
def test_all_params_reach_a_model_where_answers_about_them_are_lost(server, client, mlmodel, tmp_path, kind) -> None:
    params = {f"p{number:03}": str(number) for number in range(250)}
    with running_proxy(server.uri) as proxy:
        # More often than a call is repeated at once, so that the whole step is done again.
        proxy.fault(Fault(kind, paths=("/params",), times=6, statuses=(503,)))
        tracker = MLflowTracker(proxy.uri, record=False, delivery=Delivery(journal_root=tmp_path / "journal"))
        with tracker.start_run() as run:
            run.log_params(params)
            run.log_model(mlmodel)
        report = run.flush(timeout=60)

        assert proxy.struck[f"{kind} /params"] >= 1
    assert (report.complete, report.rejected) == (True, 0), report
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).params == params


def test_a_registry_apart_from_the_store_gets_the_version_and_the_alias(
    server, shared_journal, client, mlmodel, tmp_path, monkeypatch
) -> None:
    import mlflow

    name, registry = f"apart-{tmp_path.name}", f"sqlite:///{tmp_path}/registry.db"
    delivery = Delivery(journal_root=shared_journal)
    tracker = MLflowTracker(server.uri, "registry apart", registry_uri=registry, delivery=delivery)
    with tracker.start_run() as run:
        run.log_model(mlmodel, registered_model_name=name, aliases=["champion"])
    assert run.flush().complete

    version = mlflow.MlflowClient(server.uri, registry).get_model_version_by_alias(name, "champion")
    assert (str(version.version), version.run_id) == ("1", run.run_id)
    assert not client.search_registered_models(f"name = '{name}'")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    mlflow.set_tracking_uri(server.uri)
    try:
        assert mlflow.pyfunc.load_model(f"models:/{name}@champion").predict([1.0]) == [2.0]
    finally:
        mlflow.set_tracking_uri(None)


def test_a_model_is_saved_straight_into_the_journal(tracker, client, mlmodel, tmp_path) -> None:
    places = []

    def save(folder: Path) -> None:
        places.append(folder)
        mlmodel.rename(folder)

    with tracker.start_run() as run:
        run.save_model(save, "named", f"straight-{tmp_path.name}", ["champion"], step=3)
    assert run.flush().complete

    assert places[0].is_relative_to(tracker.settings.journal_root / run.run_key)
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    assert (client.get_logged_model(output.model_id).name, output.step) == ("named", 3)
    assert client.get_model_version_by_alias(f"straight-{tmp_path.name}", "champion").version == "1"


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (lambda folder: folder.mkdir(), "left no MLmodel file"),
        (lambda folder: (folder / "absent" / "x").touch(), "cannot be saved: .*No such file"),
    ],
    ids=["no MLmodel", "full disk and its like"],
)
def test_a_model_that_cannot_be_saved_says_why_and_leaves_nothing(tracker, save, expected) -> None:
    run = tracker.start_run()
    with pytest.raises(TrackingError, match=expected):
        run.save_model(save)
    left = list((tracker.settings.journal_root / run.run_key / "staged").glob("*/model"))
    run.end()
    report = run.flush()

    assert not left
    assert (report.complete, report.delivered, report.dropped) == (True, 0, 0)


def test_the_next_run_creates_the_next_version_and_takes_the_alias(tracker, client, mlmodel, tmp_path) -> None:
    name = f"versions-{tmp_path.name}"
    for _ in range(2):
        with tracker.start_run() as run:
            run.log_model(mlmodel, registered_model_name=name, aliases=["champion"])
        assert run.flush().complete

    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert client.get_model_version_by_alias(name, "champion").version == "2"


def test_invalid_names_and_aliases_raise_at_the_call(tmp_path, mlmodel) -> None:
    run = MLflowTracker("http://127.0.0.1:9", delivery=Delivery(journal_root=tmp_path / "j", offline=True)).start_run()
    with pytest.raises(ConfigError, match="latest"):
        run.log_model(mlmodel, registered_model_name="m", aliases=["latest"])
    with pytest.raises(InputError, match="registered_model_name"):
        run.log_model(mlmodel, aliases=["champion"])
    with pytest.raises(ConfigError, match="registered_model_name"):
        run.log_model(mlmodel, registered_model_name="a/b")
    run.end()
