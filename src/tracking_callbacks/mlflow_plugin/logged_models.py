"""Logged models as the program sees them: the server's answer with what this process has changed since."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE, TEMPORARILY_UNAVAILABLE

from tracking_callbacks._journal import calls
from tracking_callbacks._journal.provisional import NotKnownYetError
from tracking_callbacks._journal.records import now_ms
from tracking_callbacks.mlflow_plugin.addresses import model_place
from tracking_callbacks.mlflow_plugin.journals import Journals
from tracking_callbacks.mlflow_plugin.program_run import ProgramRun
from tracking_callbacks.mlflow_plugin.reading import RunView, StagedFile
from tracking_callbacks.mlflow_plugin.real_store import AwayError, RealStore

__all__ = ["LoggedModels"]


class _Change(NamedTuple):
    """A call that changes a logged model, and where it was written down."""

    call: calls.Call
    home: ProgramRun
    written: tuple[str, int]

    def delivered(self) -> bool:
        """Return whether the store has it."""
        return self.home.journal.has_acknowledged(self.written)


class LoggedModels:
    """The logged models of one store.

    Args:
        real: The real store.
        journals: What this process writes.
    """

    def __init__(self, real: RealStore, journals: Journals) -> None:
        self._real = real
        self._journals = journals
        self._changes: dict[str, list[_Change]] = {}  # what this process has written, by the ids it knows

    def create(
        self,
        run: ProgramRun | None,
        experiment_id: str,
        name: str,
        model_type: str | None,
        tags: dict[str, str],
        params: dict[str, str],
    ) -> LoggedModel:
        """Create a logged model; its id is provisional if the server does not answer in time."""
        home = run or self._journals.calls()
        provisional = f"m-{uuid.uuid4().hex}"
        run_id = None if run is None else ""
        made = calls.CreateModel(provisional, experiment_id, name, run_id, model_type, tags, params)
        self._journals.call(home, made)
        model_id = self._journals.promised(home, provisional, "model")
        if home.journal.state().made.get(provisional) == "":
            raise MlflowException(f"the store has refused the logged model {name!r}", INVALID_STATE)
        self._journals.homes[model_id] = home
        self._changes[model_id] = [_Change(made, home, home.journal.written())]
        return _model(made, model_id, None if run is None else run.given_id)

    def change(self, model_id: str, call: calls.Call) -> None:
        """Write down a call that changes a logged model."""
        home = self._journals.home(model_id)
        self._journals.call(home, call)
        self._changes.setdefault(model_id, []).append(_Change(call, home, home.journal.written()))

    def get(self, model_id: str, *args: Any, **kwargs: Any) -> LoggedModel:
        """Return a logged model, as far as the server or the journals know it."""
        own = self.own(model_id)
        pending = [one.call for one in self._changes.get(model_id, []) if not one.delivered()]  # before it is asked
        try:
            real = self._journals.ids.real(model_id)
            base = self._real.ask("get_logged_model", real, *args, briefly=own is not None, **kwargs)
        except (AwayError, NotKnownYetError) as error:
            found = own or self._foreign(model_id)
            if found is None:
                raise MlflowException(str(error), TEMPORARILY_UNAVAILABLE) from error
            return found
        base._model_id, base._model_uri = model_id, f"models:/{model_id}"
        base._artifact_location = model_place(model_id)
        _apply(base, pending)
        return base

    def own(self, model_id: str) -> LoggedModel | None:
        """Return a logged model that this process has created."""
        changes = [one.call for one in self._changes.get(model_id, [])]
        if not changes or not isinstance(changes[0], calls.CreateModel):
            return None
        home = self._journals.homes[model_id]
        model = _model(changes[0], model_id, None if changes[0].run_id is None else home.given_id)
        _apply(model, changes)
        return model

    def _foreign(self, model_id: str) -> LoggedModel | None:
        """Return a logged model that another process has created and that the server does not have yet."""
        if (found := self._journals.ids.find(model_id)) is None:
            return None
        view = self._view(found.run_key)
        changes = [call for call in view.all_calls() if getattr(call, "model_id", None) == model_id]
        made = next((call for call in changes if isinstance(call, calls.CreateModel)), None)
        if made is None:
            return None
        model = _model(made, model_id, None if made.run_id is None else view.state.run_id or found.run_key)
        _apply(model, changes)
        return model

    def staged_files(self, model_id: str) -> Iterator[StagedFile]:
        """Yield the files of a logged model that wait for their upload, the oldest first."""
        found = self._journals.ids.find(model_id)
        home = self._journals.homes.get(model_id)
        key = home.run_key if home is not None else found.run_key if found is not None else None
        if key is not None:
            yield from self._view(key).staged_model_files({model_id})

    def _view(self, run_key: str) -> RunView:
        return RunView(self._journals.root.run(run_key), {}, whole=True)

    def forget(self, model_id: str) -> None:
        """Forget a logged model that has been deleted."""
        self._changes.pop(model_id, None)
        self._journals.homes.pop(model_id, None)


def _model(made: calls.CreateModel, model_id: str, run_id: str | None) -> LoggedModel:
    now = now_ms()
    return LoggedModel(
        experiment_id=made.experiment_id,
        model_id=model_id,
        name=made.name,
        artifact_location=model_place(model_id),
        creation_timestamp=now,
        last_updated_timestamp=now,
        model_type=made.model_type,
        source_run_id=run_id,
        status=LoggedModelStatus.PENDING,
        tags=dict(made.tags),
        params=dict(made.params),
    )


def _apply(model: LoggedModel, changes: list[calls.Call]) -> None:
    """Change a logged model by calls of which the store may not have all yet."""
    for call in changes:
        match call:
            case calls.FinishModel(_, status):
                model._status = LoggedModelStatus(status)
            case calls.TagModel(_, tags):
                model._tags |= tags
            case calls.UntagModel(_, key):
                model._tags.pop(key, None)
            case calls.AddModelParams(_, params):
                model._params |= params
            case _:
                pass
