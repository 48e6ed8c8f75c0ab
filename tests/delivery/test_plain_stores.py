"""Stores without logged models, and models that a store refuses: nothing is thrown away."""

from __future__ import annotations

import json

import pytest

from faults.proxy import running_proxy
from tracking_callbacks import Delivery, MLflowTracker


@pytest.mark.parametrize("body", [b"<html>404</html>", json.dumps({"detail": "Not Found"}).encode()])
def test_a_model_is_registered_from_artifacts_where_the_store_has_no_logged_models(
    server, client, mlmodel, tmp_path, body
) -> None:
    import mlflow

    name = f"plain-{tmp_path.name}".replace("[", "").replace("]", "")
    with running_proxy(server.uri) as proxy:
        proxy.absent = {"/logged-models": body}
        tracker = MLflowTracker(proxy.uri, tmp_path.name, delivery=Delivery(journal_root=tmp_path / "journal"))
        with tracker.start_run() as run:
            run.log_model(mlmodel, registered_model_name=name, aliases=["champion"], tags={"task": "double"})
        report = run.flush()
        mlflow.set_tracking_uri(proxy.uri)
        try:
            predicted = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict([1.0])
        finally:
            mlflow.set_tracking_uri(None)

    assert (report.complete, report.rejected) == (True, 0)
    assert predicted == [2.0]
    version = client.get_model_version_by_alias(name, "champion")
    assert (version.version, version.run_id, version.tags["task"]) == ("1", run.run_id, "double")
    assert len(client.search_model_versions(f"name = '{name}'")) == 1


def test_the_files_of_a_refused_model_are_kept(tracker, mlmodel) -> None:
    with tracker.start_run() as run:
        run.log_model(mlmodel)
        (staged,) = (tracker.settings.journal_root / run.run_key).glob("staged/*/model/MLmodel")
        staged.write_text("no mapping")
    report = run.flush()

    assert (report.complete, report.rejected) == (True, 1)
    kept = tracker.settings.journal_root / "rejected" / run.run_key
    assert next(kept.rglob("MLmodel")).read_text() == "no mapping"
