"""The processes of distributed training that write no run: the exception that ends one of them ends the run.

The first process writes the run, and publishes its key in the store of the process group. A launcher ends the first
process by a signal when another one has failed, so the run would only be KILLED.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import traceback
from typing import Any

from tracking_callbacks._callbacks.training_watch import current_call
from tracking_callbacks._journal.records import ERROR_TAG
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.settings import Recording

__all__ = ["publish_run", "watch_rank"]

logger = logging.getLogger(__name__)

_KEY = "tracking_callbacks/run_key"


@never_in_the_way
def publish_run(run: Run) -> None:
    """Let the other processes know the run of this training, where there are others."""
    if (store := _store()) is not None:
        store.set(_KEY, run.run_key)


@never_in_the_way
def watch_rank(tracker: MLflowTracker | None) -> None:
    """See how this process, which writes no run, ends its part of the training."""
    if (call := current_call()) is not None:
        call.on_end(functools.partial(_report, tracker))


@never_in_the_way
def _report(tracker: MLflowTracker | None, error: BaseException | None) -> None:
    """End the run of the first process as FAILED because of an exception in this one."""
    store = _store()
    if not isinstance(error, Exception) or store is None or not store.check([_KEY]):
        return
    import torch.distributed as dist

    rank = dist.get_rank()
    lean = copy.copy(tracker or MLflowTracker())  # the first process records what there is to record
    lean.settings = dataclasses.replace(lean.settings, record=Recording.only())
    run = lean.resume_run(store.get(_KEY).decode())  # the newest session of a run decides its status
    lines = traceback.format_exception(error)
    run.log_text(mask_text("".join(lines)), f"error-rank-{rank}.txt")
    # The error tag may be that of the first process, which fails because this one is gone.
    run.set_tags({f"{ERROR_TAG}_rank_{rank}": mask_text(lines[-1].strip())})
    run.end("FAILED")


def _store() -> Any:
    """Return the store that the processes share, None where there is one process."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        return None
    return dist.distributed_c10d._get_default_store()
