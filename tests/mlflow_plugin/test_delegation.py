"""Every method of MLflow's stores is local, delegated or inherited; one that nothing is known of is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore

from tracking_callbacks.mlflow_plugin.delegation import TRACKING, delegating, kinds

SOURCES = Path(__file__).parents[2] / "src"
KINDS = """
import json
from mlflow.store.tracking.abstract_store import AbstractStore as Tracking
from mlflow.store.model_registry.abstract_store import AbstractStore as Registry
from tracking_callbacks.mlflow_plugin import delegation
from tracking_callbacks.mlflow_plugin.registry_store import JournaledRegistryStore
from tracking_callbacks.mlflow_plugin.tracking_store import JournaledTrackingStore
print(json.dumps([
    delegation.kinds(JournaledTrackingStore, Tracking, delegation.TRACKING),
    delegation.kinds(JournaledRegistryStore, Registry, delegation.REGISTRY),
]))
"""
LOCAL = {
    *("create_run", "get_run", "update_run_info", "delete_run", "log_batch", "log_metric", "log_param", "set_tag"),
    *("log_batch_async", "log_metric_async", "log_param_async", "set_tag_async", "log_inputs", "log_outputs"),
    *("record_logged_model", "get_metric_history", "create_logged_model", "finalize_logged_model", "get_logged_model"),
    *("set_logged_model_tags", "delete_logged_model_tag", "delete_logged_model"),
    *("create_experiment", "get_experiment", "get_experiment_by_name", "delete_experiment", "rename_experiment"),
}
LOCAL_REGISTRY = {
    *("create_registered_model", "get_registered_model", "update_registered_model", "rename_registered_model"),
    *("delete_registered_model", "set_registered_model_tag", "delete_registered_model_tag"),
    *("set_registered_model_alias", "delete_registered_model_alias", "create_model_version", "get_model_version"),
    *("get_model_version_download_uri", "update_model_version", "set_model_version_tag", "delete_model_version_tag"),
}
# Those that `make servers` has installed and that the plugin supports.
OTHERS = [
    python
    for python in filter(None, os.environ.get("OTHER_SERVERS", "").split(":"))
    if not Path(python).parents[1].name.startswith(("2.", "3.0."))
]


@pytest.mark.parametrize("python", [sys.executable, *OTHERS])
def test_nothing_is_refused_of_the_versions_that_are_known(python: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([python, "-c", KINDS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tracking, registry = json.loads(done.stdout.splitlines()[-1])

    for found, local in ((tracking, LOCAL), (registry, LOCAL_REGISTRY)):
        assert not [name for name, kind in found.items() if kind == "refused"]
        assert {name for name, kind in found.items() if kind == "local"} == local


def test_a_method_that_nothing_is_known_of_is_refused_loudly() -> None:
    class Newer(AbstractStore):
        def log_something_new(self, run_id: str) -> None:
            raise NotImplementedError

    @delegating(Newer, TRACKING)
    class Store(Newer):
        """A store of today, completed for the MLflow of tomorrow."""

    assert kinds(Store, Newer, TRACKING)["log_something_new"] == "refused"
    with pytest.raises(MlflowException, match="does not know MLflow's log_something_new"):
        Store().log_something_new("run")
