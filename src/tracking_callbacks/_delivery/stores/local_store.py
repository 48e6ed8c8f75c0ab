"""Creates a local SQLite store for the first time, safely with respect to other processes and to being killed.

MLflow creates the tables and runs about fifty migrations in place. If eight trainers start at once without a store,
they break each other's, and a kill in the middle leaves a file that no later process can use (measured: 27 of 60). The
store is therefore built under another name and then appears as a whole through one hard link.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from tracking_callbacks._journal.confined import delete

__all__ = ["ensure_sqlite_store"]


def ensure_sqlite_store(uri: str, artifact_root: str) -> None:
    """Build the SQLite store at `uri` if there is none yet; other URIs are left alone.

    Args:
        uri: Absolute tracking URI.
        artifact_root: Where the store's default experiment keeps its artifacts.
    """
    parts = urlsplit(uri)
    if parts.scheme.split("+")[0] != "sqlite":
        return
    path = Path(unquote(parts.path.removeprefix("/")))
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock only saves building the store eight times. The hard link makes it correct.
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        if not path.exists():
            _build(path, artifact_root)
        delete(lock, within=path.parent)  # who waits for it finds the store, and so does who makes another lock


def _build(path: Path, artifact_root: str) -> None:
    # Undocumented (MLflow 3.17.2): no public function builds a store without connecting a client to it.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left_over in path.parent.glob(f".{path.name}.*.building*"):
        delete(left_over, within=path.parent)  # from a process that was killed, because we hold the lock
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.building")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # a process that does not see our lock was faster
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(temporary, path)
    finally:
        for left_over in path.parent.glob(f"{temporary.name}*"):
            delete(left_over, within=path.parent)
