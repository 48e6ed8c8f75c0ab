"""Lists the versions of registered models: which hold an alias, and what each was compared by.

``tracking-callbacks models`` runs it as a process, because the command line does not import what reaches a store::

    python -m tracking_callbacks._delivery.registry [name] < /dev/null

The URIs are in MLflow's environment variables. It prints a list of `VersionRow` as JSON, or what went wrong on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import msgspec

from tracking_callbacks._delivery.failures import DeliveryError
from tracking_callbacks._delivery.heavy.process import HeavyProcess
from tracking_callbacks._delivery.promotion import BY_TAG, DATA_TAG, FIGURE_TAG, OUTCOME_TAG
from tracking_callbacks._delivery.stores.choice import store_for
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._journal.handover import REGISTRY_URI_VARIABLE, TRACKING_URI_VARIABLE, VersionRow

__all__ = ["main", "versions_of"]


def versions_of(store: Store, name: str) -> list[VersionRow]:
    """Return a row for each version of a registered model, oldest first.

    Raises:
        DeliveryError: There is no such model, or the store does not answer.
    """
    aliases: dict[str, list[str]] = {}
    for alias, version in store.aliases(name).items():
        aliases.setdefault(version, []).append(alias)
    return [
        VersionRow(
            model=name,
            version=one.version,
            aliases=sorted(aliases.get(one.version, [])),
            metric=one.tags.get(BY_TAG),
            figure=_number(one.tags.get(FIGURE_TAG)),
            data=one.tags.get(DATA_TAG) or None,
            outcome=one.tags.get(OUTCOME_TAG),
            run_id=one.run_id or None,
        )
        for one in store.versions(name)
    ]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def main(arguments: Sequence[str]) -> int:
    """Print the versions of the registered model that is named, or of all; return the exit code."""
    nothing_sent = HeavyProcess(lambda _: None)  # starts no process until something is uploaded
    store = store_for(os.environ[TRACKING_URI_VARIABLE], os.environ.get(REGISTRY_URI_VARIABLE), nothing_sent)
    try:
        store.load()
        names = list(arguments) or store.model_names()
        rows = [row for name in names for row in versions_of(store, name)]
    except DeliveryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
