"""The walk-forward of the trading example: each agent is judged once, on days after those that it was made from."""

from __future__ import annotations

import itertools
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import train_rl_agent
from processes import wait_for
from tracking_callbacks import MLflowTracker, finance


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_each_window_follows_the_days_that_its_agent_was_made_from(count: int) -> None:
    splits = train_rl_agent.windows(count)

    for days in splits:
        assert days.final_train[0] < days.final_train[1] == days.validation[0]
        assert days.validation[1] == days.test[0] < days.test[1]
    for before, after in itertools.pairwise(splits):
        assert before.test[1] - 1 == after.test[0]  # no day between them is left out, none is earned twice
        assert before.final_train[1] < after.final_train[1]
    assert splits[-1].test[1] == train_rl_agent.DAYS


def test_a_walk_forward_shows_the_agents_in_a_row(
    tracker: MLflowTracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.settings.tracking_uri)  # where MLflow loads models from
    parent = train_rl_agent.walk_forward(tracker, 2, 2048, seed=0)
    assert parent.flush(90).complete
    run = client.get_run(parent.run_id)

    def ended() -> list[Any]:
        nested = f"tags.mlflow.parentRunId = '{parent.run_id}'"
        found = client.search_runs([run.info.experiment_id], nested, order_by=["start_time"])
        return found if len(found) == 2 and all(one.info.status != "RUNNING" for one in found) else []

    children = wait_for(ended, "the windows have ended in the store")  # the flush was that of their parent
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/walk_forward.json")
    first, last = (train_rl_agent.windows(2)[index].test for index in (0, -1))
    prices = train_rl_agent.PRICES.to_numpy()
    window, returns, equity = (
        [row[table["columns"].index(name)] for row in table["data"]] for name in ("window", "return", "equity")
    )
    metrics = run.data.metrics

    assert [one.data.tags["mlflow.runName"] for one in children] == ["window 1", "window 2"]
    assert {one.info.status for one in (run, *children)} == {"FINISHED"}
    assert all(len(one.outputs.model_outputs) == 1 for one in children)
    registered = client.search_model_versions(f"name = '{train_rl_agent.REGISTERED_MODEL}'")
    assert not {one.run_id for one in registered} & {one.info.run_id for one in (run, *children)}
    assert len(returns) == last[1] - first[0] - 1
    assert equity == pytest.approx(np.cumprod(1.0 + np.array(returns)).tolist())
    assert metrics["walk_forward/total_return"] == pytest.approx(equity[-1] - 1.0)
    assert metrics["walk_forward/benchmark_total_return"] == pytest.approx(prices[last[1] - 1] / prices[first[0]] - 1.0)
    assert metrics["walk_forward/sharpe_standard_error"] == pytest.approx(finance.sharpe_standard_error(returns))
    assert len(client.get_metric_history(parent.run_id, "walk_forward/equity")) == len(returns)
    for number, child in enumerate(children, start=1):
        own = [value for which, value in zip(window, returns, strict=True) if which == number]
        made = float(np.prod(1.0 + np.array(own))) - 1.0
        sold = 1.0 - train_rl_agent.FEE  # at the end of a window that ends with the stock
        expected = child.data.metrics["test/total_return"]
        assert made == pytest.approx(expected) or made == pytest.approx((1.0 + expected) * sold - 1.0)
    assert "buying and holding" in run.data.tags["mlflow.note.content"]
