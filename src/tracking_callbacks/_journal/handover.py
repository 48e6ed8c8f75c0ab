"""What passes between a training process or the command line and the processes of delivery.

A training process passes an assignment at the start, in one environment variable, and later credentials that have
changed, over a socket. The command line gets rows about registered models.
"""

from __future__ import annotations

import msgspec

from tracking_callbacks._journal.owner import Owner
from tracking_callbacks._journal.records import StoreAddress

__all__ = [
    "DELIVERY_VARIABLE",
    "REGISTRY_URI_VARIABLE",
    "TRACKING_URI_VARIABLE",
    "Assignment",
    "Checkup",
    "Renewal",
    "VersionRow",
]

# MLflow's own variables. They carry the URIs with credentials, which are never part of the assignment.
TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
REGISTRY_URI_VARIABLE = "MLFLOW_REGISTRY_URI"
DELIVERY_VARIABLE = "TRACKING_CALLBACKS_DELIVERY"


class Assignment(msgspec.Struct, frozen=True):
    """Whose runs a delivery process delivers, and for how long.

    Attributes:
        store: The store as journals name it; runs of other stores are left alone.
        owner: The process that started the delivery process.
        grace: Seconds to go on after the owner's death while something is left to deliver.
        stall_timeout: Seconds without progress after which delivery gives up. Only an explicit ``sync`` sets it; that
            delivers runs which no process writes to any more.
    """

    store: StoreAddress
    owner: Owner
    grace: float = 0.0
    stall_timeout: float | None = None

    def encode(self) -> str:
        """Return the assignment as the text of `DELIVERY_VARIABLE`."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Assignment:
        """Return the assignment that `encode` wrote."""
        return msgspec.json.decode(text, type=cls)


class Renewal(msgspec.Struct, frozen=True):
    """Environment variables that have changed in the training process, with their new values; None means deleted."""

    variables: dict[str, str | None]

    @classmethod
    def between(cls, before: dict[str, str], now: dict[str, str]) -> Renewal | None:
        """Return what has changed, or None if nothing has."""
        names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        return cls({name: now.get(name) for name in names}) if names else None

    def encode(self) -> bytes:
        """Return the renewal as one line."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Renewal:
        """Return the renewal that `encode` wrote."""
        return msgspec.json.decode(line, type=cls)


class Checkup(msgspec.Struct, frozen=True):
    """What the store says when ``tracking-callbacks doctor`` asks it.

    Attributes:
        error: Why it cannot be used; empty if it can.
        version: The version of MLflow that answers; empty if it does not say so.
        experiment: The experiment of new runs exists.
    """

    error: str
    version: str = ""
    experiment: bool = False


class VersionRow(msgspec.Struct, frozen=True):
    """A version of a registered model, as ``tracking-callbacks models`` shows it; None means unknown.

    Attributes:
        model: Name of the registered model.
        version: Number of the version.
        aliases: The aliases that point at it.
        metric: What it was compared by.
        figure: Its value of that metric.
        data: Digest of the data that the value was measured on.
        outcome: What came of the comparison.
        run_id: The run that produced it.
    """

    model: str
    version: str
    aliases: list[str]
    metric: str | None
    figure: float | None
    data: str | None
    outcome: str | None
    run_id: str | None
