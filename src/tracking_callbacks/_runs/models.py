"""The models of a run: staged for delivery, registered, and compared with the version that holds an alias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking_callbacks._journal import records
from tracking_callbacks._runs.checkpoint_room import CheckpointRoom
from tracking_callbacks._runs.model_record import model_record, promotion_record
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._writing.flushing import wait_for_registration
from tracking_callbacks._writing.session import RunJournal
from tracking_callbacks._writing.snapshots import size_of
from tracking_callbacks.errors import InputError, TrackingError
from tracking_callbacks.settings import Settings

__all__ = ["ModelPlan", "RunModels", "saved_by"]


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What becomes of a model.

    Attributes:
        record: Makes its record from its staged path.
        promotion: How its version is compared; None if it is not.
        checkpoint: It is one of many, and goes where room is needed.
    """

    record: Callable[[str], records.Model]
    promotion: Promotion | None
    checkpoint: bool


class RunModels:
    """The models that one run has logged.

    Args:
        journal: Where their records go.
        settings: Those of the run.
        room: Where models that are checkpoints wait.
    """

    def __init__(self, journal: RunJournal, settings: Settings, room: CheckpointRoom) -> None:
        self._journal = journal
        self._settings = settings
        self._room = room
        self._evaluated_on: dict[str, tuple[str, str]] = {}
        self._registering: list[records.Model] = []
        self._promoting: tuple[Promotion, records.Model] | None = None
        self._checkpoints: dict[str, Path] = {}  # snapshots by the key of the model's record
        self._checkpoint_bytes = 0  # of the last of them

    def evaluated_on(self, role: str, name: str, digest: str) -> None:
        """Note which data metrics are measured on, see `Run.evaluated_on`."""
        self._evaluated_on[role] = name, digest

    def plan(
        self,
        name: str,
        registered_model_name: str | None,
        aliases: Iterable[str],
        step: int | None,
        tags: Mapping[str, Any] | None,
        promote: Promotion | None,
        *,
        checkpoint: bool = False,
    ) -> ModelPlan:
        """Check the arguments of `Run.log_model` and `Run.save_model`, which also names the errors."""
        if checkpoint and registered_model_name is not None:
            raise InputError(f"save_model: a checkpoint cannot be registered (as {registered_model_name!r})")
        record = model_record(
            name, registered_model_name, aliases, step, tags, self._evaluated_on, checkpoint=checkpoint
        )
        if promote is not None and registered_model_name is None:
            raise InputError(f"promote: the alias {promote.alias!r} needs a registered_model_name")
        promotion = None if registered_model_name is None else promote or self._settings.promote
        return ModelPlan(record, promotion, checkpoint)

    def stage(self, write: Callable[[Path], object], plan: ModelPlan) -> str | None:
        """Have `write` write the model into the journal's folder, and return the key of its record.

        Returns:
            None if it could not be kept.
        """
        if plan.checkpoint:
            self._room.make(self._checkpoint_bytes)
        made: list[records.Model] = []

        def kept(staged: str) -> records.Model:
            made.append(plan.record(staged))
            return made[-1]

        if (staged := self._journal.stage("model", write, kept)) is None:
            return None
        model = made[-1]
        if plan.checkpoint:
            self._checkpoints[model.record_key] = staged
            self._checkpoint_bytes = size_of(staged)
            self._room.add(staged, self._checkpoint_bytes)
        if model.registered_model_name is not None:
            self._registering.append(model)
            if plan.promotion is not None:
                self._promoting = plan.promotion, model
                self.compare_again([plan.promotion.by])
        return model.record_key

    def delete(self, key: str) -> None:
        """Delete a model that is a checkpoint, also from the store."""
        if (staged := self._checkpoints.pop(key, None)) is not None:
            self._room.discard(staged)
        self._journal.append(records.DeleteModel(key))

    def compare_again(self, metrics: Iterable[str]) -> None:
        """Compare the last registered version, if the metric that decides is among `metrics`."""
        if self._promoting is not None and self._promoting[0].by in metrics:
            self._journal.append(promotion_record(*self._promoting, self._evaluated_on))

    def wait(self, described: Callable[[], str]) -> None:
        """Wait until those that name a registered model are registered, see `Run.wait_for_registration`.

        Args:
            described: Says what the run is called, and how it has ended.
        """
        models, self._registering = self._registering, []
        promoted = {self._promoting[1].record_key} if self._promoting is not None else set()
        if models and not self._journal.offline:
            promoted &= {model.record_key for model in models}
            wait_for_registration(self._journal, models, promoted, self._settings.delivery.wait_at_end, described)


def saved_by(save: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return `save`, followed by a check of what it has left; see `Run.save_model` for the errors."""

    def write(target: Path) -> None:
        try:
            save(target)
        except OSError as error:
            raise TrackingError(f"the model cannot be saved: {error}") from error
        if not (target / "MLmodel").is_file():
            raise TrackingError("the model cannot be logged: saving it left no MLmodel file")

    return write
