"""Use an installed wheel as a user would, without torch or any framework.

scripts/wheel.py runs this in an empty folder.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

STORE = "sqlite:///x.db"
FLUENT = """
import mlflow
mlflow.set_experiment("fluent")
with mlflow.start_run(run_name="plain"):
    mlflow.log_param("lr", 0.1)
    mlflow.log_metric("loss", 0.5, step=1)
"""


def main() -> None:
    """Write through the core, the command line, the switch and the plugin; read back with MLflow's client."""
    import tracking_callbacks

    assert Path(tracking_callbacks.__file__).is_relative_to(sys.prefix), tracking_callbacks.__file__
    assert importlib.util.find_spec("torch") is None

    with tracking_callbacks.MLflowTracker(STORE, "core").start_run("first") as run:
        run.log_params({"lr": 0.1})
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_text("hello", "note.txt")
    report = run.flush(120)
    assert (report.pending, report.rejected) == (0, 0), report

    program = Path(sys.prefix, "bin", "tracking-callbacks")
    assert "doctor" in printed(program, "--help")
    printed(program, "status")
    printed(program, "doctor", "--tracking-uri", STORE)

    code = "import sys; print('tracking_callbacks._switch' in sys.modules)"
    assert printed(sys.executable, "-c", code).strip() == "False"
    assert printed(sys.executable, "-c", code, TRACKING_CALLBACKS_TRAINER="1").strip() == "True"

    printed(sys.executable, "-c", FLUENT, MLFLOW_TRACKING_URI=f"journal+{STORE}")
    printed(program, "sync")
    check()
    print("the core, the command line, the switch and the plugin work")


def check() -> None:
    """Hold what MLflow's own client reads in the store."""
    from mlflow import MlflowClient
    from mlflow.artifacts import load_text

    client = MlflowClient(STORE, STORE)
    for experiment, name in (("core", "first"), ("fluent", "plain")):
        found = client.get_experiment_by_name(experiment)
        assert found is not None, experiment
        (run,) = client.search_runs([found.experiment_id])
        assert (run.info.run_name, run.info.status) == (name, "FINISHED"), run.info
        assert (run.data.params["lr"], run.data.metrics["loss"]) == ("0.1", 0.5), run.data
        if experiment == "core":
            assert load_text(f"{run.info.artifact_uri}/note.txt") == "hello"


def printed(*command: str | Path, **variables: str) -> str:
    """Return what a command prints; raise with it if the command fails."""
    done = subprocess.run(
        command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout)
    return done.stdout


if __name__ == "__main__":
    main()
