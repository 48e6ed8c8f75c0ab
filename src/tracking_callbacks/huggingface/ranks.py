"""The processes of distributed training that write no run.

The first process writes the run, and publishes what it is known by in the store of the process group. The exception
that ends another process ends the run: a launcher ends the first process by a signal then, so the run would only be
KILLED. The first process of each further machine adds that machine's system metrics.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import time
import traceback
from typing import Any

from transformers import TrainingArguments

from tracking_callbacks._callbacks.training_watch import WatchedCall, current_call
from tracking_callbacks._journal.records import ERROR_TAG
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._values.store_uri import is_local_store
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks._writing.node import node_name
from tracking_callbacks.settings import Recording

__all__ = ["FurtherNode", "publish_run", "watch_rank"]

logger = logging.getLogger(__name__)

_KEY = "tracking_callbacks/run"
_LOOK_SECONDS = 1.0


@never_in_the_way
def publish_run(run: Run) -> None:
    """Let the other processes know the run of this training, where there are others."""
    if (store := _store()) is not None:
        known = {"run_id": run.journal.known_run_id()} if run.joined else {"run_key": run.run_key}
        store.set(_KEY, json.dumps(known))


@never_in_the_way
def watch_rank(tracker: MLflowTracker | None, args: TrainingArguments) -> FurtherNode | None:
    """See how this process, which writes no run, ends its part of the training.

    Returns:
        What adds the system metrics of this machine, where this process is to do that.
    """
    call = current_call()
    if call is None:
        return None
    call.on_end(functools.partial(_report, tracker))
    if not node_name() or args.local_process_index:
        return None
    tracker = tracker or MLflowTracker()
    settings = tracker.settings
    delivers = not (settings.disabled or settings.delivery.offline or is_local_store(settings.tracking_uri))
    return FurtherNode(tracker, call) if delivers and settings.record.system_metrics else None


class FurtherNode:
    """Adds the system metrics of this machine to the run, as soon as the first process has published that.

    Args:
        tracker: Where the run is.
        call: The training, whose end ends this too.
    """

    def __init__(self, tracker: MLflowTracker, call: WatchedCall) -> None:
        self._tracker = tracker
        self._run: Run | None = None
        self._next_look = 0.0
        call.on_end(self.end)

    @never_in_the_way
    def look(self) -> None:
        """Join the run if it is known by now; called after a step, because the first step waits for all processes."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if (known := _published()) is not None:
            self._next_look = float("inf")
            self._run = self._tracker.join_node(**known)

    @never_in_the_way
    def end(self, _: BaseException | None = None) -> None:
        """Add nothing more."""
        self._next_look = float("inf")
        if self._run is not None:
            self._run.end()


@never_in_the_way
def _report(tracker: MLflowTracker | None, error: BaseException | None) -> None:
    """End the run of the first process as FAILED because of an exception in this one."""
    if not isinstance(error, Exception) or (known := _published()) is None:
        return
    import torch.distributed as dist

    rank = dist.get_rank()
    lean = copy.copy(tracker or MLflowTracker())  # the first process records what there is to record
    lean.settings = dataclasses.replace(lean.settings, record=Recording.only())
    # The newest session of a run decides its status.
    run = lean.resume_run(known["run_key"]) if "run_key" in known else lean.start_run(run_id=known["run_id"])
    lines = traceback.format_exception(error)
    run.log_text(mask_text("".join(lines)), f"error-rank-{rank}.txt")
    # The error tag may be that of the first process, which fails because this one is gone.
    run.set_tags({f"{ERROR_TAG}_rank_{rank}": mask_text(lines[-1].strip())})
    run.end("FAILED")


def _published() -> dict[str, str] | None:
    """Return what the first process has published of its run, as arguments that name it."""
    store = _store()
    if store is None or not store.check([_KEY]):
        return None
    known: dict[str, str] = json.loads(store.get(_KEY))
    return known


def _store() -> Any:
    """Return the store that the processes share, None where there is one process."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        return None
    return dist.distributed_c10d._get_default_store()
