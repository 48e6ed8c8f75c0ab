"""The tracking store at ``journal+…``: writes go to the journal, reads are laid over the real store's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mlflow.entities import (
    Experiment,
    LoggedModel,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.validation import (
    _validate_batch_log_data,
    _validate_batch_log_limits,
    _validate_metric,
    _validate_param,
    _validate_param_keys_unique,
    _validate_run_id,
    _validate_tag,
    missing_value,
)

from tracking_callbacks._journal import calls, records
from tracking_callbacks._journal.provisional import NotKnownYetError, Provisional
from tracking_callbacks.mlflow_plugin.addresses import Place, run_place, with_places
from tracking_callbacks.mlflow_plugin.delegation import TRACKING, delegating
from tracking_callbacks.mlflow_plugin.experiments import Experiments
from tracking_callbacks.mlflow_plugin.journals import Journals, journals_for
from tracking_callbacks.mlflow_plugin.logged_models import LoggedModels
from tracking_callbacks.mlflow_plugin.program_run import ProgramRun
from tracking_callbacks.mlflow_plugin.reading import (
    CONTEXT_TAG,
    RUN_KEY_TAG,
    RUN_NAME_TAG,
    JournalView,
    RunView,
    StagedFile,
    begins,
    overlaid,
)
from tracking_callbacks.mlflow_plugin.real_store import AwayError, RealStore, store_of

__all__ = ["JournaledTrackingStore"]

_MOST_VIEWS = 200
_LOGGED_MODELS_TAG = "mlflow.log-model.history"


@delegating(AbstractStore, TRACKING)
class JournaledTrackingStore(AbstractStore):  # type: ignore[misc]  # MLflow has no types
    """MLflow's tracking store, with a journal between the program and the real one.

    Args:
        store_uri: ``journal+`` and the URI of the real store.
    """

    def __init__(self, store_uri: str) -> None:
        super().__init__()
        uri = store_of(store_uri)
        self._real = RealStore(uri, lambda: _real_tracking_store(uri))
        self._journals: Journals = journals_for(uri)
        self._views: dict[Path, JournalView] = {}
        self._experiments = Experiments(self._real, self._journals)
        self._models = LoggedModels(self._real, self._journals)

    # -- the real store ----------------------------------------------------------------------------------------------

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the real store, once it has what this process has written."""
        self._journals.settle()
        args, kwargs = self._with_real_ids(args), self._with_real_ids(kwargs)
        return with_places(self._real.ask(method, *args, **kwargs))

    def _with_real_ids(self, value: Any) -> Any:
        """Return arguments with the server's ids in place of provisional ones."""
        if isinstance(value, str):
            return self._server_id(value)
        if isinstance(value, tuple | list):
            return type(value)(self._with_real_ids(one) for one in value)
        if isinstance(value, dict):
            return {key: self._with_real_ids(one) for key, one in value.items()}
        return value

    def _server_id(self, text: str) -> str:
        found = self._journals.ids.find(text) if len(text) <= 64 else None
        if found is None:
            return text
        if found.kind == "experiment" and found.real is None:
            return self._experiments.real_id(text, found) or text
        try:
            return self._journals.ids.real(text)
        except NotKnownYetError as error:
            raise MlflowException(str(error), TEMPORARILY_UNAVAILABLE) from error

    # -- experiments -------------------------------------------------------------------------------------------------

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        return self._experiments.create(name, artifact_location, tags)

    def get_experiment(self, experiment_id: str) -> Experiment:
        return self._experiments.get(experiment_id)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        return self._experiments.by_name(experiment_name)

    def delete_experiment(self, experiment_id: str) -> None:
        self.ask("delete_experiment", experiment_id)
        self._experiments.forget()

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        self.ask("rename_experiment", experiment_id, new_name)
        self._experiments.forget()

    # -- runs --------------------------------------------------------------------------------------------------------

    def create_run(
        self,
        experiment_id: str,
        user_id: str,  # noqa: ARG002 - the tag mlflow.user says the same
        start_time: int,
        tags: Sequence[RunTag],
        run_name: str | None,
    ) -> Run:
        texts = {tag.key: tag.value for tag in map(_checked_tag, tags or [])}
        if run_name and texts.get(RUN_NAME_TAG, run_name) != run_name:
            raise MlflowException(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values "
                f"(run_name='{run_name}', mlflow.runName='{texts[RUN_NAME_TAG]}').",
                INVALID_PARAMETER_VALUE,
            )
        experiment_id = str(experiment_id)
        self._experiments.check(experiment_id)
        name = run_name or texts.get(RUN_NAME_TAG) or _generate_random_name()
        texts[RUN_NAME_TAG] = name
        run = self._journals.create_run(experiment_id, start_time, texts, name)
        info = _run_info(run, "RUNNING", None)
        return Run(info, RunData(tags=[RunTag(*item) for item in texts.items()]), RunInputs([], []), RunOutputs([]))

    def get_run(self, run_id: str) -> Run:
        _validate_run_id(run_id)
        views = self._run_views(run_id)
        complete = begins(views)
        base: Run | None = None
        server_id = self._journals.server_id(run_id)
        if server_id is None and not complete:
            raise MlflowException(f"the run {run_id} is not on the server yet", TEMPORARILY_UNAVAILABLE)
        if server_id is not None:
            try:
                base = self._ask_run(server_id, briefly=complete)
            except AwayError:
                if not complete:
                    raise
        if base is None:
            views = self._run_views(run_id, whole=True)
        run = overlaid(run_id, base, views, run_place(run_id))
        run.info._experiment_id = self._experiments.shown_id(run.info.experiment_id)
        return run

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        run = self._run(run_id)
        if run_name:
            run.journal.append(records.Tags({RUN_NAME_TAG: run_name}))
        status = None if run_status is None else RunStatus.to_string(run_status)
        # A client that renames a run gives the status that it has; that must not make this process decide it.
        if status is not None and not (status == "RUNNING" and run_name and run.joined):
            run.set_status(status, end_time)
        return _run_info(run, status or "RUNNING", end_time)

    def delete_run(self, run_id: str) -> None:
        self.ask("delete_run", run_id)
        self._journals.forget(run_id)

    def _run(self, run_id: str) -> ProgramRun:
        return self._journals.run(run_id, self._check_run)

    def _check_run(self, run_id: str) -> None:
        """Raise the server's error if a run cannot be written to."""
        _validate_run_id(run_id)
        try:
            run = self._ask_run(run_id, briefly=True)
        except AwayError:
            return
        if run.info.lifecycle_stage != "active":
            raise MlflowException(
                f"The run {run_id} must be in the 'active' state. Current state is {run.info.lifecycle_stage}.",
                INVALID_PARAMETER_VALUE,
            )

    def _ask_run(self, run_id: str, *, briefly: bool) -> Run:
        """Return the server's run; its id may be the provisional one of another journal root, which is its key."""
        try:
            return self._real.ask("get_run", run_id, briefly=briefly)
        except AwayError:
            raise
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            experiments = [one.experiment_id for one in self._real.ask("search_experiments", ViewType.ALL, 1000)]
            wanted = f"tags.`{RUN_KEY_TAG}` = '{run_id}'"
            found = self._real.ask("search_runs", experiments, wanted, ViewType.ALL, 1) if experiments else []
            if not found:
                raise
        run: Run = found[0]
        self._journals.writable_root()
        self._journals.ids.promise(run_id, Provisional("run", run_id, real=run.info.run_id))
        return run

    def _run_views(self, run_id: str, *, whole: bool = False) -> list[RunView]:
        if len(self._views) > _MOST_VIEWS:
            self._views = {path: view for path, view in self._views.items() if path.exists()}
        return [RunView(folder, self._views, whole=whole) for folder in self._journals.folders_of(run_id)]

    # -- metrics, params, tags ---------------------------------------------------------------------------------------

    def log_metric(self, run_id: str, metric: Metric) -> None:
        if not metric.key:
            raise MlflowException(
                f"{missing_value('key')} See the API docs for more information about request parameters.",
                INVALID_PARAMETER_VALUE,
            )
        _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        self._append_metrics(self._run(run_id), [metric])

    def log_param(self, run_id: str, param: Param) -> None:
        self._append_params(self._run(run_id), [_validate_param(param.key, param.value)], one=True)

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        checked = _checked_tag(tag)
        self._run(run_id).journal.append(records.Tags({checked.key: checked.value}))

    def delete_tag(self, run_id: str, key: str) -> None:
        run = self._run(run_id)
        try:
            there = self.get_run(run_id).data.tags
        except AwayError:
            there = {key: ""}
        if key not in there:
            raise MlflowException(f"No tag with name: {key} in run with id {run_id}", RESOURCE_DOES_NOT_EXIST)
        run.journal.append(records.DeleteTag(key))

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        metrics, params, tags = _validate_batch_log_data(metrics, params, tags)
        if params or tags or len(metrics) > 1:
            _validate_batch_log_limits(metrics, params, tags)
            _validate_param_keys_unique(params)
        run = self._run(run_id)
        if params:
            self._append_params(run, params)
        if metrics:
            self._append_metrics(run, metrics)
        if tags:
            run.journal.append(records.Tags({tag.key: tag.value for tag in tags}))

    def _append_metrics(self, run: ProgramRun, metrics: Sequence[Metric]) -> None:
        points: dict[str, float] = {}
        first = metrics[0]
        linked = False
        for metric in metrics:
            linked = linked or metric.model_id is not None
            if metric.key in points or metric.step != first.step or metric.timestamp != first.timestamp:
                run.journal.append(records.Metrics(int(first.timestamp), int(first.step), points))
                points, first = {}, metric
            points[metric.key] = float(metric.value)
        run.journal.append(records.Metrics(int(first.timestamp), int(first.step), points))
        if linked:
            self._link_metrics(run, metrics)

    def _link_metrics(self, run: ProgramRun, metrics: Sequence[Metric]) -> None:
        by_model: dict[tuple[str, tuple[str, str] | None], list[tuple[str, float, int, int]]] = {}
        for one in metrics:
            if one.model_id is not None:
                dataset = (one.dataset_name, one.dataset_digest) if one.dataset_name and one.dataset_digest else None
                point = one.key, float(one.value), int(one.timestamp), int(one.step)
                by_model.setdefault((one.model_id, dataset), []).append(point)
        for (model_id, dataset), points in by_model.items():
            self._journals.call(run, calls.LinkPoints(model_id, points, dataset))

    def _append_params(self, run: ProgramRun, params: Sequence[Param], *, one: bool = False) -> None:
        if run.params is None:  # another process has written to the run
            try:
                run.params = dict(self.get_run(run.given_id).data.params)
            except AwayError:
                run.params = {}
        known = run.params
        changed = [param for param in params if known.get(param.key, param.value) != param.value]
        if changed and one:
            (param,) = changed
            raise MlflowException(
                f"Changing param values is not allowed. Param with key='{param.key}' was already logged with "
                f"value='{known[param.key]}' for run ID='{run.given_id}'. Attempted logging new value '{param.value}'.",
                INVALID_PARAMETER_VALUE,
            )
        if changed:
            listed = [{"key": param.key, "old_value": known[param.key], "new_value": param.value} for param in changed]
            raise MlflowException(
                f"Changing param values is not allowed. Params were already logged='{listed}' for run "
                f"ID='{run.given_id}'.",
                INVALID_PARAMETER_VALUE,
            )
        new = {param.key: param.value for param in params if param.key not in known}
        if new:
            run.journal.append(records.Params(new))
            known |= new

    # -- the same, asynchronously ------------------------------------------------------------------------------------

    def log_batch_async(self, run_id: str, metrics: Any, params: Any, tags: Any) -> RunOperations:
        """Log a batch; the journal is as fast as a queue, so the operation is over when it is returned."""
        done: Future[None] = Future()
        try:
            self.log_batch(run_id, metrics, params, tags)
            done.set_result(None)
        except MlflowException as error:
            done.set_exception(error)
        return RunOperations([done])

    def log_metric_async(self, run_id: str, metric: Metric) -> RunOperations:
        return self.log_batch_async(run_id, [metric], [], [])

    def log_param_async(self, run_id: str, param: Param) -> RunOperations:
        return self.log_batch_async(run_id, [], [param], [])

    def set_tag_async(self, run_id: str, tag: RunTag) -> RunOperations:
        return self.log_batch_async(run_id, [], [], [tag])

    # -- histories ---------------------------------------------------------------------------------------------------

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        _validate_run_id(run_id)
        views = self._run_views(run_id)
        server_id = self._journals.server_id(run_id)
        points: list[Metric] = []
        away = server_id is None
        if server_id is not None:
            try:
                while True:
                    page = self._real.ask(
                        "get_metric_history", server_id, metric_key, max_results, page_token, briefly=begins(views)
                    )
                    points += page
                    if not (page_token := page.token):
                        break
            except AwayError:
                if not begins(views):
                    raise
                away, points = True, []
        there = {_identity(point) for point in points}
        for view in self._run_views(run_id, whole=True) if away else views:
            for point in view.pending_points(metric_key, whole=away):
                if _identity(point) not in there:
                    there.add(_identity(point))
                    points.append(point)
        return PagedList(points, None)

    # -- inputs and outputs ------------------------------------------------------------------------------------------

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        run = self._run(run_id)
        for one in datasets or []:
            tags = {tag.key: tag.value for tag in one.tags}
            context = tags.pop(CONTEXT_TAG, None)
            dataset = one.dataset
            run.journal.append(
                records.Dataset(
                    name=dataset.name,
                    digest=dataset.digest,
                    source_type=dataset.source_type,
                    source=dataset.source,
                    schema=dataset.schema,
                    profile=dataset.profile,
                    context=context,
                    tags=tags,
                )
            )
        for one in models or []:
            self._journals.call(run, calls.UseModel(one.model_id))

    def log_outputs(self, run_id: str, models: Any) -> None:
        run = self._run(run_id)
        for one in models:
            self._journals.call(run, calls.UseModel(one.model_id, step=one.step))

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        try:
            history = json.loads(self.get_run(run_id).data.tags.get(_LOGGED_MODELS_TAG, "[]"))
        except AwayError:
            history = []
        self.set_tag(run_id, RunTag(_LOGGED_MODELS_TAG, json.dumps([*history, mlflow_model.get_tags_dict()])))

    # -- logged models -----------------------------------------------------------------------------------------------

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        return self._models.create(
            self._run(source_run_id) if source_run_id else None,
            str(experiment_id),
            name or _generate_random_name(),
            model_type,
            {tag.key: tag.value for tag in tags or []},
            {param.key: param.value for param in params or []},
        )

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus | str) -> LoggedModel:
        self._models.change(model_id, calls.FinishModel(model_id, LoggedModelStatus(status).value))
        return self._models.own(model_id) or self._models.get(model_id)

    def set_logged_model_tags(self, model_id: str, tags: list[LoggedModelTag]) -> None:
        self._models.change(model_id, calls.TagModel(model_id, {tag.key: tag.value for tag in tags}))

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        if key not in self._models.get(model_id).tags:
            raise MlflowException(
                f"No tag with key {key!r} found for model with ID {model_id!r}.", RESOURCE_DOES_NOT_EXIST
            )
        self._models.change(model_id, calls.UntagModel(model_id, key))

    def log_logged_model_params(self, model_id: str, params: list[LoggedModelParameter]) -> None:
        self._models.change(model_id, calls.AddModelParams(model_id, {one.key: one.value for one in params}))

    def get_logged_model(self, model_id: str, *args: Any, **kwargs: Any) -> LoggedModel:
        return self._models.get(model_id, *args, **kwargs)

    def delete_logged_model(self, model_id: str) -> None:
        self.ask("delete_logged_model", model_id)
        self._models.forget(model_id)

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def run_of(self, place: Place) -> ProgramRun:
        """Return the run in whose journal the artifacts of a place are written down."""
        return self._run(place.name) if place.kind == "runs" else self._journals.home(place.name)

    def begins_here(self, place: Place) -> bool:
        """Return whether the journals hold the beginning of what a place belongs to."""
        if place.kind == "runs":
            return begins(self._run_views(place.name))
        return place.name in self._journals.homes

    def staged_files(self, place: Place) -> Iterator[StagedFile]:
        """Yield the files of a place that wait for their upload, the oldest first."""
        if place.kind == "runs":
            for view in self._run_views(place.name):
                yield from view.staged_artifacts()
            return
        yield from self._models.staged_files(place.name)

    def ask_repository(self, place: Place, method: str, *args: Any, briefly: bool) -> Any:
        """Call a method of the real artifact repository of a place.

        Raises:
            AwayError: The store does not answer, or has nothing of it yet.
        """
        real = self._journals.server_id(place.name)
        if real is None:
            raise AwayError(f"{place.name} is not on the server yet", TEMPORARILY_UNAVAILABLE)
        if place.kind == "runs":
            uri = self._real.ask("get_run", real, briefly=briefly).info.artifact_uri
        else:
            uri = self._real.ask("get_logged_model", real, briefly=briefly).artifact_location
        repository = get_artifact_repository(uri, tracking_uri=self._real.uri)
        return self._real.limited(getattr(repository, method), *args, briefly=briefly)

    # -- what else MLflow asks of a store ------------------------------------------------------------------------------

    @property
    def supports_workspaces(self) -> bool:
        return False

    def _search_runs(self, *args: Any) -> Any:
        return self.ask("_search_runs", *args)

    def _load_dataset_records(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask("_load_dataset_records", *args, **kwargs)

    def _delete_traces(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask("_delete_traces", *args, **kwargs)


def _real_tracking_store(uri: str) -> Any:
    from mlflow.tracking._tracking_service import utils  # undocumented (MLflow 3.17.2): nothing public gives a store

    return utils._get_store(uri)


def _run_info(run: ProgramRun, status: str, end_time: int | None) -> RunInfo:
    opened = run.opened
    return RunInfo(
        run_id=run.given_id,
        experiment_id=opened.experiment_id or "",
        user_id=opened.tags.get("mlflow.user", "unknown"),
        status=status,
        start_time=opened.timestamp,
        end_time=end_time,
        lifecycle_stage="active",
        artifact_uri=run_place(run.given_id),
        run_name=opened.run_name,
    )


def _checked_tag(tag: RunTag) -> RunTag:
    return _validate_tag(tag.key, tag.value)


def _identity(point: Metric) -> tuple[int, int, float | None]:
    return point.timestamp, point.step, None if point.value != point.value else point.value
