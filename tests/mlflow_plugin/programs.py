"""One list of MLflow calls, as programs make them, and what they answer in a form that can be compared.

Everything that differs between two runs of the list by itself is made equal: ids, times, addresses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.entities.logged_model_input import LoggedModelInput
from mlflow.entities.logged_model_output import LoggedModelOutput
from mlflow.exceptions import MlflowException

__all__ = ["Program", "answers", "plain"]

START = 1_700_000_000_000
UNEQUAL = {
    *("creation_time", "creation_timestamp", "last_update_time", "last_updated_timestamp", "size", "file_size"),
    *("experiment_id", "artifact_uri", "artifact_location", "artifact_path", "source"),
    *("deployment_job_id", "deployment_job_state", "effective_trace_archival_retention"),
}
_ID = re.compile(r"\b(m-)?[0-9a-f]{32}\b")
_NOW = re.compile(r"\b1[89][0-9]{11}\b")
_OURS = ("tracking_callbacks.",)


class Program:
    """The calls, in order. What one call keeps in `self`, later ones use.

    Args:
        client: A client of the tracking URI, which is also the fluent API's.
        name: Part of the names of experiments and registered models.
        folder: A folder with files to log.
    """

    def __init__(self, client: MlflowClient, name: str, folder: Path) -> None:
        self.client = client
        self.name = name
        self.folder = folder
        (folder / "deep/er").mkdir(parents=True)
        (folder / "a.txt").write_text("a")
        (folder / "deep/b.txt").write_text("b")
        (folder / "deep/er/ü &+.txt").write_text("c")

    def calls(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield each call with its number and name."""
        parts = (
            self.experiments,
            self.client_runs,
            self.batches,
            self.refusals,
            self.artifacts,
            self.fluent,
            self.datasets,
            self.models,
            self.registry,
            self.endings,
            self.searches,
        )
        for part in parts:
            for number, call in enumerate(part()):
                yield f"{part.__name__} {number}", call

    def keep(self, name: str, value: Any) -> Any:
        setattr(self, name, value)
        return value

    def experiments(self) -> list[Callable[[], Any]]:
        c = self.client
        return [
            lambda: mlflow.get_experiment_by_name(self.name),
            lambda: self.keep("experiment", c.create_experiment(self.name, tags={"team": "ü"})) and None,
            lambda: c.create_experiment(self.name),
            lambda: c.create_experiment(""),
            lambda: c.get_experiment(self.experiment).name,
            lambda: c.get_experiment_by_name(self.name),
            lambda: c.set_experiment_tag(self.experiment, "stage", "one"),
            lambda: c.get_experiment(self.experiment).tags,
            lambda: mlflow.set_experiment(self.name).name,
            lambda: mlflow.set_experiment_tag("fluent", "two"),
            lambda: c.get_experiment("98765432198765"),
            lambda: [e.name for e in c.search_experiments(filter_string=f"name = '{self.name}'")],
        ]

    def client_runs(self) -> list[Callable[[], Any]]:
        c = self.client
        return [
            lambda: self.keep("run", c.create_run(self.experiment, START, {"mlflow.user": "me", "a": "1"}, "first")),
            lambda: self.keep("run_id", self.run.info.run_id) and None,
            lambda: c.get_run(self.run_id),
            lambda: (
                self.keep(
                    "child",
                    c.create_run(self.experiment, START + 1, {"mlflow.parentRunId": self.run_id}, "second").info.run_id,
                )
                and None
            ),
            lambda: c.get_parent_run(self.child).info.run_name,
            lambda: c.get_parent_run(self.run_id),
            lambda: c.create_run(self.experiment, START, {"mlflow.runName": "x"}, "y"),
            lambda: c.create_run("98765432198765", START),
            lambda: c.get_run("0" * 32),
            lambda: c.get_run("not an id!"),
            lambda: c.log_metric("0" * 32, "a", 1),
            lambda: c.update_run(self.run_id, name="renamed"),
            lambda: c.get_run(self.run_id).info.run_name,
            lambda: c.update_run(self.run_id, status="RUNNING"),
            lambda: c.update_run(self.run_id),
        ]

    def batches(self) -> list[Callable[[], Any]]:
        c, r = self.client, lambda: self.run_id
        return [
            lambda: c.log_metric(r(), "loss", 0.5, START + 1, 1),
            lambda: c.log_metric(r(), "loss", 0.25, START + 2, 2),
            lambda: c.log_metric(r(), "loss", 0.25, START + 2, 2),
            lambda: c.log_metric(r(), "loss", 0.75, START + 1, 1),
            lambda: c.log_metric(r(), "numpy", np.float32(0.5), START),
            lambda: c.log_metric(r(), "array", np.array([2]), START),
            lambda: c.log_metric(r(), "odd", math.nan, START, 1),
            lambda: c.log_metric(r(), "odd", math.inf, START, 2),
            lambda: c.log_metric(r(), "odd", -math.inf, START, 3),
            lambda: c.log_metric(r(), "negative step", 1.0, START, -5),
            lambda: c.get_metric_history(r(), "loss"),
            lambda: c.get_metric_history(r(), "odd"),
            lambda: c.get_metric_history(r(), "none"),
            lambda: c.log_param(r(), "lr", 0.1),
            lambda: c.log_param(r(), "lr", 0.1),
            lambda: c.log_param(r(), "text", "ü\n'\""),
            lambda: c.log_param(r(), "empty", ""),
            lambda: c.log_param(r(), "long", "x" * 6000),
            lambda: c.set_tag(r(), "tag", "one"),
            lambda: c.set_tag(r(), "tag", "two"),
            lambda: c.set_tag(r(), "gone", "soon"),
            lambda: c.delete_tag(r(), "gone"),
            lambda: c.set_tag(r(), "number", 5),
            lambda: c.set_tag(r(), "again", "a"),
            lambda: c.delete_tag(r(), "again"),
            lambda: c.set_tag(r(), "again", "b"),
            lambda: c.get_run(r()).data,
            lambda: c.log_batch(
                r(),
                [
                    Metric("m", 1.0, START, 0),
                    Metric("m", 2.0, START, 1),
                    Metric("n", 3.0, START, 1),
                    Metric("n", 4.0, START, 1),
                ],
                [Param("p", "1"), Param("q", "2")],
                [RunTag("s", "1"), RunTag("t", "2")],
            ),
            lambda: c.log_batch(r(), [Metric(f"many/{i}", float(i), START + i, i) for i in range(1500)]),
            lambda: c.log_batch(r(), params=[Param(f"p{i}", str(i)) for i in range(150)]),
            lambda: c.log_batch(r(), tags=[RunTag(f"t{i}", str(i)) for i in range(120)]),
            lambda: c.log_batch(r()),
            lambda: c.log_batch(r(), [Metric("async", 1.0, START, 0)], synchronous=False).wait(),
            lambda: c.log_metric(r(), "async", 2.0, START, 1, synchronous=False).wait(),
            lambda: c.log_param(r(), "async", 2, synchronous=False).wait(),
            lambda: c.set_tag(r(), "async", 2, synchronous=False).wait(),
            lambda: c.get_run(r()),
        ]

    def refusals(self) -> list[Callable[[], Any]]:
        c, r = self.client, lambda: self.run_id
        return [
            lambda: c.log_param(r(), "lr", 0.2),
            lambda: c.log_batch(r(), params=[Param("lr", "0.3"), Param("new", "1")]),
            lambda: c.log_batch(r(), params=[Param("twice", "1"), Param("twice", "2")]),
            lambda: c.log_param(r(), "long again", "x" * 7000),
            lambda: c.log_metric(r(), "", 1.0),
            lambda: c.log_metric(r(), "bad;name", 1.0),
            lambda: c.log_metric(r(), "../up", 1.0),
            lambda: c.log_metric(r(), "k" * 300, 1.0),
            lambda: c.log_metric(r(), "word", "no number"),
            lambda: c.log_metric(r(), "early", 1.0, -1),
            lambda: c.log_param(r(), "bad;name", 1),
            lambda: c.log_param(r(), "k" * 300, 1),
            lambda: c.set_tag(r(), "bad;name", 1),
            lambda: c.set_tag(r(), "k" * 300, 1),
            lambda: c.set_tag(r(), "long", "x" * 9000),
            lambda: c.delete_tag(r(), "never set"),
            lambda: c.log_batch(r(), [Metric("fine", 1.0, START, 0), Metric("not fine!;", 1.0, START, 0)]),
            lambda: c.get_run(r()).data.params.get("new"),
            lambda: sorted(c.get_run(r()).data.metrics)[:8],
        ]

    def artifacts(self) -> list[Callable[[], Any]]:
        c, r, f = self.client, lambda: self.run_id, self.folder
        return [
            lambda: c.list_artifacts(r()),
            lambda: c.log_artifact(r(), str(f / "a.txt")),
            lambda: c.log_artifact(r(), str(f / "a.txt"), "sub/folder"),
            lambda: c.log_artifact(r(), str(f / "deep"), "whole"),
            lambda: c.log_artifact(r(), str(f / "no such file")),
            lambda: c.log_artifact(r(), str(f / "a.txt"), "../out"),
            lambda: c.log_artifacts(r(), str(f), "all"),
            lambda: c.log_artifacts(r(), str(f / "deep")),
            lambda: c.log_text(r(), "text ü", "texts/t.txt"),
            lambda: c.log_text(r(), "text again", "texts/t.txt"),
            lambda: c.log_dict(r(), {"b": [1, 2]}, "d.json"),
            lambda: c.log_dict(r(), {"b": [1, 2]}, "d.yaml"),
            lambda: c.log_table(r(), {"x": [1, 2], "y": ["a", "b"]}, "table.json"),
            lambda: c.log_table(r(), {"x": [3], "y": ["c"]}, "table.json"),
            lambda: c.log_figure(r(), _figure(), "figure.png"),
            lambda: c.log_image(r(), np.zeros((4, 4, 3), dtype=np.uint8), "image.png"),
            lambda: sorted(_tree(c, r())),
            lambda: [i.path for i in c.list_artifacts(r(), "all/deep")],
            lambda: c.list_artifacts(r(), "all/a.txt"),
            lambda: c.list_artifacts(r(), "nothing there"),
            lambda: Path(c.download_artifacts(r(), "all/a.txt")).read_text(),
            lambda: sorted(p.name for p in Path(c.download_artifacts(r(), "whole")).rglob("*")),
            lambda: mlflow.artifacts.load_text(f"runs:/{r()}/texts/t.txt"),
            lambda: mlflow.artifacts.load_dict(f"runs:/{r()}/d.json"),
            lambda: mlflow.load_table("table.json", run_ids=[r()]).to_dict(),
            lambda: c.download_artifacts(r(), "nothing there"),
            lambda: c.get_run(r()).data.tags.get("mlflow.loggedArtifacts"),
        ]

    def fluent(self) -> list[Callable[[], Any]]:
        c = self.client
        return [
            lambda: (
                self.keep(
                    "outer", mlflow.start_run(run_name="outer", tags={"x": "1"}, description="what it is").info.run_id
                )
                and None
            ),
            lambda: mlflow.active_run().info.run_name,
            lambda: mlflow.start_run(),
            lambda: mlflow.log_metric("loss", 1.0, step=1, timestamp=START),
            lambda: mlflow.log_metrics({"a": 1.0, "b": 2.0}, step=2, timestamp=START),
            lambda: mlflow.log_metric("later", 1.0, synchronous=False, timestamp=START).wait(),
            lambda: mlflow.log_param("p", "v"),
            lambda: mlflow.log_params({"q": 1, "r": None}),
            lambda: mlflow.log_param("p", "w"),
            lambda: mlflow.set_tag("y", 2),
            lambda: mlflow.set_tags({"z": 3, "w": "4"}),
            lambda: mlflow.delete_tag("w"),
            lambda: mlflow.log_artifact(self.folder / "a.txt", "one"),
            lambda: mlflow.log_artifacts(self.folder / "deep", "many"),
            lambda: mlflow.log_text("t", "t.txt"),
            lambda: mlflow.log_dict({"k": 1}, "k.json"),
            lambda: mlflow.log_figure(_figure(), "f.png"),
            lambda: mlflow.log_image(
                np.zeros((4, 4), dtype=np.uint8), key="i", step=1, timestamp=START, synchronous=True
            ),
            lambda: mlflow.log_table({"x": [1]}, "t.json"),
            lambda: mlflow.get_artifact_uri().startswith(("mlflow-artifacts:", "journal-artifacts:")),
            lambda: self.keep("inner", mlflow.start_run(run_name="inner", nested=True).info.run_id) and None,
            lambda: mlflow.log_metric("inner", 1.0, timestamp=START),
            lambda: mlflow.end_run("FAILED"),
            lambda: c.get_run(self.inner).info.status,
            lambda: c.get_run(self.inner).data.tags["mlflow.parentRunId"] == self.outer,
            lambda: mlflow.get_run(self.outer).data,
            lambda: mlflow.end_run(),
            lambda: mlflow.last_active_run().info.status,
            lambda: mlflow.start_run(run_id=self.outer).info.status,
            lambda: mlflow.log_metric("resumed", 1.0, timestamp=START),
            lambda: mlflow.log_param("p", "z"),
            lambda: mlflow.end_run(),
            lambda: c.get_run(self.outer).info.status,
            lambda: mlflow.start_run(run_id="0" * 32),
            lambda: _raising(),
            lambda: mlflow.last_active_run().info.status,
            lambda: mlflow.active_run(),
        ]

    def datasets(self) -> list[Callable[[], Any]]:
        c, r = self.client, lambda: self.run_id
        frame = pd.DataFrame({"x": [1, 2], "y": [0.5, 1.5]})
        dataset = Dataset("named", "digest", "local", "{}", "{}", "{}")
        return [
            lambda: c.log_inputs(
                r(), [DatasetInput(dataset, [InputTag("mlflow.data.context", "train"), InputTag("k", "v")])]
            ),
            lambda: c.log_inputs(
                r(), [DatasetInput(dataset, [InputTag("mlflow.data.context", "train"), InputTag("k", "v")])]
            ),
            lambda: c.get_run(r()).inputs.dataset_inputs,
            lambda: mlflow.start_run(run_id=r()) and None,
            lambda: mlflow.log_input(mlflow.data.from_pandas(frame, name="frame", targets="y"), context="eval"),
            lambda: mlflow.end_run(),
            lambda: sorted(i.dataset.name for i in c.get_run(r()).inputs.dataset_inputs),
        ]

    def models(self) -> list[Callable[[], Any]]:
        c, r = self.client, lambda: self.run_id
        from sklearn.linear_model import LinearRegression

        fitted = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
        return [
            lambda: (
                self.keep(
                    "model",
                    c.create_logged_model(self.experiment, "model", r(), {"t": "1"}, {"p": "2"}, "agent").model_id,
                )
                and None
            ),
            lambda: c.get_logged_model(self.model),
            lambda: c.log_outputs(r(), [LoggedModelOutput(self.model, 3)]),
            lambda: c.set_logged_model_tags(self.model, {"u": "2", "gone": "x"}),
            lambda: c.delete_logged_model_tag(self.model, "gone"),
            lambda: c.delete_logged_model_tag(self.model, "never"),
            lambda: c.log_model_params(self.model, {"q": "3"}),
            lambda: c.log_model_artifacts(self.model, str(self.folder / "deep")),
            lambda: c.log_model_artifact(self.model, str(self.folder / "a.txt")),
            lambda: sorted(i.path for i in c.list_logged_model_artifacts(self.model)),
            lambda: c.finalize_logged_model(self.model, "READY").status,
            lambda: c.get_logged_model(self.model),
            lambda: c.log_metric(r(), "of model", 0.5, START, 3, model_id=self.model),
            lambda: c.log_metric(
                r(), "of data", 0.5, START, 3, model_id=self.model, dataset_name="named", dataset_digest="digest"
            ),
            lambda: [o.step for o in c.get_run(r()).outputs.model_outputs],
            lambda: self.keep("used", c.create_run(self.experiment, START + 2, run_name="uses").info.run_id) and None,
            lambda: c.log_inputs(self.used, models=[LoggedModelInput(self.model)]),
            lambda: len(c.get_run(self.used).inputs.model_inputs),
            lambda: c.set_terminated(self.used, end_time=START + 3),
            lambda: c.get_logged_model("m-" + "0" * 32),
            lambda: mlflow.start_run(run_name="sklearn") and None,
            lambda: mlflow.log_metric("before", 1.0, timestamp=START),
            lambda: (
                self.keep(
                    "info",
                    mlflow.sklearn.log_model(fitted, name="fitted", input_example=[[2.0]], skops_trusted_types=[]),
                )
                and None
            ),
            lambda: mlflow.end_run(),
            lambda: mlflow.pyfunc.load_model(self.info.model_uri).predict(pd.DataFrame([[3.0]])).tolist(),
            lambda: mlflow.models.get_model_info(self.info.model_uri).flavors.keys() and None,
            lambda: self.keep("alone", c.create_logged_model(self.experiment, "alone").model_id) and None,
            lambda: c.finalize_logged_model(self.alone, "FAILED").status,
            lambda: c.delete_logged_model(self.alone),
            lambda: sorted(m.name for m in c.search_logged_models([self.experiment])),
        ]

    def registry(self) -> list[Callable[[], Any]]:
        c, n = self.client, f"{self.name}-model"
        return [
            lambda: c.get_registered_model(n),
            lambda: c.create_registered_model(n, {"a": "1"}, "described"),
            lambda: c.create_registered_model(n),
            lambda: c.create_registered_model("bad/name:"),
            lambda: c.get_registered_model(n),
            lambda: c.update_registered_model(n, "described again"),
            lambda: c.set_registered_model_tag(n, "b", "2"),
            lambda: c.set_registered_model_tag(n, "c", "3"),
            lambda: c.delete_registered_model_tag(n, "c"),
            lambda: c.get_registered_model(n),
            lambda: self.keep("version", mlflow.register_model(f"models:/{self.model}", n, tags={"v": "1"}).version),
            lambda: c.get_model_version(n, self.version),
            lambda: (
                c.create_model_version(
                    n, f"models:/{self.model}", self.run_id, {"w": "2"}, description="second", model_id=self.model
                ).version
            ),
            lambda: mlflow.register_model(f"runs:/{self.run_id}/whole", n).version,
            lambda: mlflow.register_model(self.info.model_uri, n).status,
            lambda: c.set_registered_model_alias(n, "champion", "1"),
            lambda: c.set_registered_model_alias(n, "champion", "2"),
            lambda: c.set_registered_model_alias(n, "other", "1"),
            lambda: c.delete_registered_model_alias(n, "other"),
            lambda: c.set_registered_model_alias(n, "none", "99"),
            lambda: c.get_model_version_by_alias(n, "champion").version,
            lambda: c.set_model_version_tag(n, "1", "k", "v"),
            lambda: c.set_model_version_tag(n, "1", "gone", "v"),
            lambda: c.delete_model_version_tag(n, "1", "gone"),
            lambda: c.update_model_version(n, "1", "the first").description,
            lambda: c.get_model_version(n, "1"),
            lambda: c.get_model_version(n, "99"),
            lambda: sorted(v.version for v in c.search_model_versions(f"name = '{n}'")),
            lambda: [m.name for m in c.search_registered_models(f"name = '{n}'")],
            lambda: json.loads(c.get_logged_model(self.model).tags["mlflow.modelVersions"]),
            lambda: mlflow.pyfunc.load_model(f"models:/{n}/4").predict(pd.DataFrame([[3.0]])).tolist(),
            lambda: c.delete_model_version(n, "3"),
            lambda: sorted(v.version for v in c.search_model_versions(f"name = '{n}'")),
            lambda: c.rename_registered_model(n, f"{n}-renamed").name,
            lambda: c.rename_registered_model(f"{n}-renamed", n).name,
        ]

    def endings(self) -> list[Callable[[], Any]]:
        c, r = self.client, lambda: self.run_id
        return [
            lambda: c.set_terminated(self.child, "KILLED", START + 1000),
            lambda: c.get_run(self.child).info,
            lambda: c.log_metric(self.child, "after the end", 1.0, START),
            lambda: c.set_terminated(r(), end_time=START + 5000),
            lambda: c.get_run(r()).info,
            lambda: c.update_run(r(), status="FAILED"),
            lambda: c.get_run(r()).info.status,
            lambda: c.set_terminated(r(), "FINISHED", START + 6000),
            lambda: c.set_terminated(r(), "NONSENSE"),
            lambda: self.keep("dead", c.create_run(self.experiment, START, run_name="dead").info.run_id) and None,
            lambda: c.delete_run(self.dead),
            lambda: c.log_metric(self.dead, "a", 1.0),
            lambda: c.get_run(self.dead).info.lifecycle_stage,
            lambda: c.restore_run(self.dead),
            lambda: c.log_metric(self.dead, "a", 1.0, START),
            lambda: c.set_terminated(self.dead, end_time=START + 1),
        ]

    def searches(self) -> list[Callable[[], Any]]:
        c = self.client
        return [
            lambda: sorted(r.info.run_name for r in c.search_runs([self.experiment])),
            lambda: [r.info.run_name for r in c.search_runs([self.experiment], "params.lr = '0.1'")],
            lambda: [r.info.run_name for r in c.search_runs([self.experiment], "metrics.loss > 0.9")],
            lambda: sorted(mlflow.search_runs([self.experiment])["tags.mlflow.runName"]),
            lambda: [r.info.run_name for r in c.search_runs([self.experiment], run_view_type=ViewType.DELETED_ONLY)],
            lambda: c.search_runs([self.experiment], "nonsense"),
        ]


def answers(program: Program) -> dict[str, Any]:
    """Make all calls, and return what each answered or raised, in a comparable form."""
    ids: dict[str, str] = {}
    found = {}
    for name, call in program.calls():
        try:
            answer = plain(call(), ids)
        except MlflowException as error:
            answer = ["raised", error.error_code, plain(_message(error), ids)]
        except Exception as error:  # noqa: BLE001 - what it raises is its answer
            answer = ["raised", type(error).__name__, plain(str(error), ids)]
        text = json.dumps(answer).replace(program.name, "<name>").replace(str(program.folder), "<folder>")
        found[name] = json.loads(_NOW.sub("<now>", text))
    return found


def _message(error: MlflowException) -> str:
    return str(error).removeprefix(f"{error.error_code}: ").partition("Response body")[0].partition("[SQL")[0]


def plain(value: Any, ids: dict[str, str]) -> Any:
    """Return a value of MLflow's without what differs by itself."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return repr(value)
        case str():
            return _ID.sub(lambda match: ids.setdefault(match.group(), f"<id {len(ids)}>"), value)
        case dict():
            return {
                plain(str(key), ids): plain(one, ids)
                for key, one in value.items()
                if key not in UNEQUAL and not str(key).startswith(_OURS)
            }
        case list() | tuple() | set():
            # The order of these is the store's.
            return sorted((plain(one, ids) for one in value), key=json.dumps)
        case _ if hasattr(value, "__iter__") and type(value).__module__.startswith("mlflow."):
            return plain(dict(value), ids)
        case _:
            return plain(str(value), ids)


def _tree(client: MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        if not entry.path.startswith("images/"):
            found += _tree(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return found


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure()


def _raising() -> None:
    with mlflow.start_run(run_name="raises"):
        raise ValueError("in the block")
