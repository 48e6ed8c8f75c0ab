"""The store refuses some entries: the valid ones arrive, and the refused ones are accounted for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from faults.scenarios import LONG_TEXT, ODD_METRICS
from processes import artifacts, run_script

LOGGED = """
    import math
    from tracking_callbacks import MLflowTracker
    from tracking_callbacks._journal.records import Metrics, Tags, now_ms

    run = MLflowTracker().start_run()
    run.log_params({"lr": 0.1, "long": "ü" + 6000 * "x"})
    run.log_metrics({"loss": 1.0, "nan": math.nan, "up": math.inf, "down": -math.inf}, step=1)
    run.log_metrics({"prêt 😀": 1.0, 300 * "k": 2.0, 300 * "k" + "2": 3.0, "a?": 4.0, "a!": 5.0, "/a//b": 6.0}, step=1)
    run.set_tags({"mood 😀": "😀"})
    # What an older version, or a later rule of the store, may let into a journal:
    run.journal.append(Metrics(now_ms(), 2, {"loss": 0.5, "bad//name": 7.0, "": 8.0, "accuracy": 0.9}))
    run.journal.append(Tags({"bad//tag": "x", "stage": "two"}))
    run.log_metrics({"loss": 0.25}, step=3)
    run.log_params({f"p{n}": n for n in range(10_000)})
    run.end()
    run.flush()
    print(run.run_key)
"""

RESUMED = """
    import dataclasses, json
    from tracking_callbacks import MLflowTracker

    run = MLflowTracker().resume_run("{run_key}")
    run.log_params({{"lr": 0.2, "batch": 8, "p1": 1}})
    run.log_metrics({{"loss": 0.125}}, step=4)
    run.end()
    print(json.dumps(dataclasses.asdict(run.flush())))
"""


def rejected_entries(client: MlflowClient, run_id: str, folder: Path) -> list[dict[str, object]]:
    """Return the lists of refused entries: one from the run's first session, and one from each later session."""
    lists = Path(client.download_artifacts(run_id, "tracking_callbacks", str(folder))).rglob("rejected.jsonl")
    return [json.loads(line) for path in lists for line in path.read_text(encoding="utf-8").splitlines()]


def test_valid_entries_arrive_and_each_refused_entry_has_a_reason(server, client, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    first = run_script(LOGGED, cwd=tmp_path, env=env)
    assert first.returncode == 0, first.stderr
    second = run_script(RESUMED.format(run_key=first.stdout.strip()), cwd=tmp_path, env=env)
    assert second.returncode == 0, second.stderr
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    largest = 1.7976931348623157e308

    def points(key: str) -> list[tuple[int, str]]:
        return [(point.step, repr(point.value)) for point in client.get_metric_history(run.info.run_id, key)]

    assert run.info.status == "FINISHED"
    assert points("loss") == [(1, "1.0"), (2, "0.5"), (3, "0.25"), (4, "0.125")]
    assert [points(key) for key in ("nan", "up", "down")] == [[(1, "nan")], [(1, f"{largest}")], [(1, f"{-largest}")]]
    assert points("accuracy") == [(2, "0.9")]
    odd = {key: value for key, value in run.data.metrics.items() if value in (2.0, 3.0, 4.0, 5.0, 6.0)}
    assert sorted(odd.values()) == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert all(len(key) <= 250 for key in odd)
    assert points("pr_t _") == [(1, "1.0")] or points("prêt _") == [(1, "1.0")]
    params = client.get_run(run.info.run_id).data.params
    assert {key: text for key, text in params.items() if key[0] == "p"} == {f"p{n}": str(n) for n in range(10_000)}
    assert (params["lr"], params["batch"], len(params["long"])) == ("0.1", "8", 6000)
    whole = Path(client.download_artifacts(run.info.run_id, "params/long.txt", str(tmp_path))).read_text("utf-8")
    assert whole == "ü" + 6000 * "x"
    assert run.data.tags["stage"] == "two"
    assert "😀" in run.data.tags.values()

    refused = rejected_entries(client, run.info.run_id, tmp_path)
    assert sorted((entry["record"], entry["name" if entry["record"] != "metric" else "key"]) for entry in refused) == [
        ("metric", ""),
        ("metric", "bad//name"),
        ("tag", "bad//tag"),
    ]
    assert all(entry["reason"] for entry in refused)
    assert run.data.tags["param_drift.lr"] == "0.2"
    assert run.data.tags["tracking_callbacks.rejected"] == "3"
    assert json.loads(second.stdout)["rejected"] == 0
    assert quiet_but_for(first.stderr) == ["the store refused 3 entries; rejected.jsonl among the artifacts says why"]
    assert quiet_but_for(second.stderr) == []


@pytest.mark.parametrize(
    ("scenario", "plan", "changed"),
    [
        ("huggingface", {"arguments": {"save_strategy": "steps", "save_steps": 12}}, {"learning_rate", "max_steps"}),
        ("sb3", {}, {"learning_rate", "total_timesteps"}),
    ],
)
def test_odd_values_and_changed_settings_cause_no_warning(
    scenario, plan, changed, trainers, server, client, tmp_path
) -> None:
    trainer = trainers.start(scenario, tmp_path / scenario, server.uri, odd=True, continued=True, **plan)
    assert trainer.wait() == 0, trainer.errors

    (run,) = trainer.check_exact(client)
    names = {name: value for name, value in run.data.metrics.items() if value in ODD_METRICS.values()}
    assert sorted(names.values()) == [value for value in ODD_METRICS.values() if math.isfinite(value)]
    group = "train/" if scenario == "huggingface" else ""
    largest = 1.7976931348623157e308
    odd = [run.data.metrics[f"{group}{name}"] for name in ("up", "down", "not a number")]
    assert [repr(value) for value in odd] == [repr(largest), repr(-largest), "nan"]

    (long,) = [name for name, text in run.data.params.items() if text.startswith(LONG_TEXT[:5])]
    assert len(run.data.params[long]) == 6000
    whole = Path(client.download_artifacts(run.info.run_id, f"params/{long}.txt", str(tmp_path)))
    assert whole.read_text("utf-8") == LONG_TEXT

    drifted = {name.removeprefix("param_drift.") for name in run.data.tags if name.startswith("param_drift.")}
    # transformers completes the model's configuration while it trains and saves.
    assert {name for name in drifted if "model." not in name} == changed
    assert "tracking_callbacks.rejected" not in run.data.tags
    assert "tracking_callbacks/rejected.jsonl" not in artifacts(client, run.info.run_id)
    assert quiet_but_for(trainer.errors) == []


def quiet_but_for(errors: str) -> list[str]:
    """Return the messages other than the progress of a long delivery."""
    return [line for line in errors.splitlines() if "delivering for at most" not in line]
