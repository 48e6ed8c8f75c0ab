"""Where the program reads and writes artifacts: ``journal-artifacts:`` in place of the real store's URIs.

::

    journal-artifacts:/runs/<run id>          the artifacts of a run
    journal-artifacts:/models/<model id>      the files of a logged model
    journal-artifacts:/at/<quoted URI>        what lies elsewhere in the real store, read and written there
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from mlflow.entities import LoggedModel, Run, Trace, TraceInfo

__all__ = ["SCHEME", "Place", "model_place", "other_place", "place_at", "run_place", "with_places"]

SCHEME = "journal-artifacts:"
_TRACE_TAG = "mlflow.artifactLocation"


class Place(NamedTuple):
    """What an address names: ``runs``, ``models`` or ``at``, its id or URI, and a path below it."""

    kind: str
    name: str
    path: str


def run_place(run_id: str) -> str:
    """Return the address of a run's artifacts."""
    return f"{SCHEME}/runs/{run_id}"


def model_place(model_id: str) -> str:
    """Return the address of a logged model's files."""
    return f"{SCHEME}/models/{model_id}"


def other_place(uri: str) -> str:
    """Return the address of what lies at a URI of the real store."""
    return f"{SCHEME}/at/{quote(uri, safe='')}"


def place_at(address: str) -> Place | None:
    """Return what an address names; None if it is another kind of URI."""
    parts = address.removeprefix(SCHEME).strip("/").split("/", 2)
    if not address.startswith(SCHEME) or len(parts) < 2 or parts[0] not in ("runs", "models", "at"):
        return None
    kind, name, *path = parts
    return Place(kind, unquote(name), path[0] if path else "")


def with_places(answer: Any) -> Any:
    """Return an answer of the real store in which artifacts lie at our addresses."""
    if isinstance(answer, list):
        answer[:] = [with_places(one) for one in answer]
    elif type(answer) is tuple:
        return tuple(with_places(one) for one in answer)
    elif isinstance(answer, Run):
        answer.info._artifact_uri = run_place(answer.info.run_id)
    elif isinstance(answer, LoggedModel):
        answer._artifact_location = model_place(answer.model_id)
    elif isinstance(answer, Trace):
        with_places(answer.info)
    elif isinstance(answer, TraceInfo) and _TRACE_TAG in answer.tags and SCHEME not in answer.tags[_TRACE_TAG]:
        answer.tags[_TRACE_TAG] = other_place(answer.tags[_TRACE_TAG])
    return answer
