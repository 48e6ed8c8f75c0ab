"""What a training process tells the delivery process it starts.

At the start it passes an assignment, in one environment variable; later, credentials that have changed, over a socket.
"""

from __future__ import annotations

import msgspec

from tracking_callbacks._journal.owner import Owner
from tracking_callbacks._journal.records import StoreAddress

__all__ = ["DELIVERY_VARIABLE", "REGISTRY_URI_VARIABLE", "TRACKING_URI_VARIABLE", "Assignment", "Renewal"]

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
