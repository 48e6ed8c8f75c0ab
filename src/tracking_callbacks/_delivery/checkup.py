"""Asks the store whether delivery could work.

``tracking-callbacks doctor`` runs it as a process::

    python -m tracking_callbacks._delivery.checkup <experiment> < /dev/null

The URIs are in MLflow's environment variables. It prints a `Checkup` as JSON. It creates nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import msgspec

from tracking_callbacks._delivery.failures import DeliveryError
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.stores.choice import store_for
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE, Checkup

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Print what the store answers; return 0."""
    (experiment,) = arguments
    nothing_sent = HeavyProcess(lambda _: None)  # starts no process until something is uploaded
    store = store_for(os.environ[TRACKING_URI_VARIABLE], os.environ.get(REGISTRY_URI_VARIABLE), nothing_sent)
    try:
        store.load()
        found = store.find_experiment(experiment) is not None
        checkup = Checkup(error="", version=store.mlflow_version(), experiment=found)
    except DeliveryError as error:
        checkup = Checkup(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(checkup))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
