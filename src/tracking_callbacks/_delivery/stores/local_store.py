"""First creation of a local SQLite store, safe against other processes and against being killed.

MLflow creates the tables and runs some fifty migrations in place. Eight trainers that start at once on an absent
store break one another, and a kill in the middle leaves a file that no later process can use (measured: 27 of 60).
So the store is built under another name and appears, whole, by one hard link.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

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
    # The lock only spares the work of building it eight times; the link is what keeps it right, also between
    # containers whose temp folders differ.
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    with FileLock(Path(tempfile.gettempdir()) / f"tracking_callbacks-{os.getuid()}-{digest}.lock"):
        if not path.exists():
            _build(path, artifact_root)


def _build(path: Path, artifact_root: str) -> None:
    # Undocumented (MLflow 3.17.2): no public function builds a store without connecting a client to it.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left_over in path.parent.glob(f".{path.name}.*.building*"):
        left_over.unlink(missing_ok=True)  # of a builder that was killed; we hold the lock
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.building")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # somebody beyond the reach of our lock was faster
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(temporary, path)
    finally:
        for left_over in path.parent.glob(f"{temporary.name}*"):
            left_over.unlink(missing_ok=True)
