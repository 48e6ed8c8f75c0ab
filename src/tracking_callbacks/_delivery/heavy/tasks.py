"""What the delivery process asks of the heavy process, and what it answers: one JSON object per line."""

from __future__ import annotations

import msgspec

from tracking_callbacks._delivery.failures import Blocked, DeliveryError, NotOffered, Refused, Transient
from tracking_callbacks._journal.records import Drawing

__all__ = ["Answer", "Done", "Draw", "Failed", "Sent", "Task", "UploadFile", "UploadFolder", "UploadModel"]


class UploadFile(msgspec.Struct, tag=True):
    """Upload a file of a run to its artifact root."""

    run_id: str
    path: str
    artifact_path: str | None


class UploadFolder(msgspec.Struct, tag=True):
    """Upload the content of a folder of a run to its artifact root."""

    run_id: str
    folder: str
    artifact_path: str | None


class UploadModel(msgspec.Struct, tag=True):
    """Upload the files of a logged model to its artifact root."""

    model_id: str
    folder: str


class Draw(msgspec.Struct, tag=True):
    """Draw pictures into the folder ``drawn`` of a run's folder, and return their paths."""

    run_id: str
    record: Drawing
    snapshot: str | None
    run_folder: str


Task = UploadFile | UploadFolder | UploadModel | Draw


class Done(msgspec.Struct, tag=True):
    """The task is done; `files` are the paths that it made."""

    files: list[str] = []


class Sent(msgspec.Struct, tag=True):
    """An upload goes on: so many bytes since the last answer."""

    size: int


class Failed(msgspec.Struct, tag=True):
    """The task failed, as a `DeliveryError` says."""

    kind: str
    message: str
    may_have_committed: bool = False
    retry_now: bool = False
    retry_after: float = 0.0
    code: str = ""

    @classmethod
    def because(cls, error: DeliveryError) -> Failed:
        """Return the answer for `error`."""
        match error:
            case Transient():
                return cls("Transient", str(error), error.may_have_committed, error.retry_now, error.retry_after)
            case Refused():
                return cls(type(error).__name__, str(error), code=error.code)
            case _:
                return cls("Blocked", str(error))

    def error(self) -> DeliveryError:
        """Return the error that `because` was given."""
        match self.kind:
            case "Blocked":
                return Blocked(self.message)
            case "NotOffered":
                return NotOffered(self.message, self.code)
            case "Refused":
                return Refused(self.message, self.code)
            case _:
                return Transient(
                    self.message,
                    may_have_committed=self.may_have_committed,
                    retry_now=self.retry_now,
                    retry_after=self.retry_after,
                )


Answer = Done | Sent | Failed
