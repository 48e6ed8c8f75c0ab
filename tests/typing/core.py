"""How users call the core: never run, only read by type checkers, as they see an installed package.

A line that is an error ends in an ``ignore`` comment, and the checkers report each such comment that is not needed.
`make check` runs mypy here, `make wheel` mypy and pyright.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

from tracking_callbacks import (
    Alert,
    ConfigError,
    Delivery,
    DeliveryReport,
    InputError,
    MLflowTracker,
    Promotion,
    Recording,
    Run,
    TrackingError,
)
from tracking_callbacks.finance import sharpe_ratio
from tracking_callbacks.settings import Settings


def right(values: Mapping[str, float], written: Path) -> None:
    """Hold the types of what the core returns."""
    tracker = MLflowTracker(
        "http://localhost:5000",
        "sweeps",
        config="mlflow_config.yaml",
        tags={"team": "a", "round": 2},
        record=Recording(source=False, config_files=["train.yaml"]),
        delivery=Delivery(flush_timeout=10, offline=True),
        alerts=[Alert(when="fails", notify="$WEBHOOK")],
    )
    assert_type(tracker.settings, Settings)
    with tracker.start_run("parent") as parent, tracker.start_run("child", parent=parent) as run:
        assert_type(run, Run)
        run.log_params({"lr": 1e-3, "layers": [1, 2]})
        run.log_metrics(values, step=1)
        run.log_artifact(written, "notes")
        run.set_tags({"a": 1})
        run.log_dict({"a": [1]}, "a.json")
        run.end("KILLED")
    report = run.flush(timeout=5)
    assert_type(report, DeliveryReport)
    assert_type(report.pending, int)
    assert_type(run.run_id, str | None)
    assert_type(run.url, str | None)
    MLflowTracker(record=False)
    MLflowTracker(record=Recording.only(source=True))
    Promotion("champion", by="eval/f1")
    assert_type(sharpe_ratio([0.1, 0.2]), float | None)
    errors: list[type[TrackingError]] = [ConfigError, InputError]
    assert errors


def wrong(tracker: MLflowTracker, run: Run) -> None:
    """Each line is an error."""
    MLflowTracker(uri="http://localhost:5000")  # type: ignore[call-arg]
    MLflowTracker(record="all")  # type: ignore[arg-type]
    Recording(sources=True)  # type: ignore[call-arg]
    Delivery(flush_timeout="long")  # type: ignore[arg-type]
    Delivery().offline = True  # type: ignore[misc]
    tracker.start_run(1)  # type: ignore[arg-type]
    tracker.log_metrics({"loss": 1.0})  # type: ignore[attr-defined]
    run.log_metrics(0.5)  # type: ignore[arg-type]
    run.log_metrics({"loss": 0.5}, step="1")  # type: ignore[arg-type]
    run.log_artifact(1)  # type: ignore[arg-type]
    run.end("DONE")  # type: ignore[arg-type]
    run.run_id.upper()  # type: ignore[union-attr]
    Promotion()  # type: ignore[call-arg]
