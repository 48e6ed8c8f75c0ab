"""The map from ids that a program was given without the server's answer to those that the server gives later.

MLflow's programs need an id at once: of a run, an experiment, a logged model, a version. Where the server has not
answered in time, the id is provisional. One small file for each, below ``.ids/`` in the journal root, says which run's
folder will know the server's id. Delivery writes that id into the file before the folder goes, so that every process
that uses the root can look it up, also long afterwards. A run's provisional id is its key.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import msgspec

from tracking_callbacks._journal.confined import delete, is_key, read_own
from tracking_callbacks._journal.layout import JournalRoot, RunState, write_atomically

__all__ = ["PENDING_VERSION", "NotKnownYetError", "Provisional", "ProvisionalIds"]

PENDING_VERSION = "pending-"  # how the provisional number of a model version begins


class NotKnownYetError(LookupError):
    """The server has not given its id for a provisional one yet."""


class Provisional(msgspec.Struct):
    """What is known of a provisional id.

    Attributes:
        kind: What it is the id of.
        run_key: The run in whose journal it is created.
        name: Of an experiment, which delivery finds or creates by it.
        artifact_location: Of an experiment that delivery creates; None means the store's own choice.
        tags: Of an experiment that delivery creates.
        real: The server's id; empty if the store has refused what it was given for. None means that it is not known.
    """

    kind: Literal["run", "experiment", "model", "version"]
    run_key: str = ""
    name: str = ""
    artifact_location: str | None = None
    tags: dict[str, str] = {}
    real: str | None = None


class ProvisionalIds:
    """The provisional ids of one journal root."""

    def __init__(self, root: JournalRoot) -> None:
        self._root = root

    def promise(self, provisional: str, found: Provisional) -> None:
        """Write down what a provisional id is for, or what has become of it.

        Raises:
            OSError: It cannot be written.
        """
        self._root.ids.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self._root.ids / provisional, msgspec.json.encode(found))

    def find(self, text: str) -> Provisional | None:
        """Return what is known of a provisional id; None if `text` is none, but for example the server's own."""
        if not is_key(text):
            return None
        try:
            return msgspec.json.decode(read_own(self._root.ids / text), type=Provisional)
        except (OSError, msgspec.MsgspecError):
            return None

    def real(self, text: str) -> str:
        """Return the server's id for `text`, which is that itself if it is not provisional.

        Raises:
            NotKnownYetError: The server has not given it yet, or has refused to.
        """
        if (found := self.find(text)) is None:
            return text
        real = found.real
        if real is None and is_key(found.run_key):
            folder = self._root.run(found.run_key)
            state = folder.read_state() or self._root.final_state(found.run_key) or RunState()
            real = state.run_id if found.kind == "run" else state.made.get(text)
        if not real:
            refused = "; the store has refused it" if real is not None else ""
            raise NotKnownYetError(f"the {found.kind} {found.name or text} is not on the server yet{refused}")
        return real

    def keep(self, run_key: str, state: RunState) -> None:
        """Write the server's ids into the map, because the run's folder is about to go."""
        for provisional, real in ({run_key: state.run_id} | state.made).items():
            found = self.find(provisional)
            if found is not None and found.real is None and real is not None:
                found.real = real
                with contextlib.suppress(OSError):  # a full disk: the final state has it for a week
                    self.promise(provisional, found)

    def prune(self, older_than: float) -> None:
        """Remove what has become of ids before `older_than` (seconds since the epoch); the store's tags say it, too."""
        for path in self._root.ids.glob("*"):
            found = self.find(path.name)
            with contextlib.suppress(FileNotFoundError):  # another process prunes, too
                if found is not None and found.real is not None and path.lstat().st_mtime < older_than:
                    delete(path, within=self._root.path)
