"""The assignment that a training process passes, in one environment variable, to the delivery process it starts."""

from __future__ import annotations

import msgspec

from tracking_callbacks._journal.owner import Owner
from tracking_callbacks._journal.records import Store

__all__ = ["DELIVERY_VARIABLE", "REGISTRY_URI_VARIABLE", "TRACKING_URI_VARIABLE", "Assignment"]

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

    store: Store
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
