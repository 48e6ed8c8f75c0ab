"""How the kernel ranks delivery behind training."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import delivery_processes, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.priority import Priority, _is_grouped


def test_delivery_has_the_lowest_priority_only_while_a_run_is_being_written(server, tmp_path: Path) -> None:
    run = MLflowTracker(server.uri, "priority", delivery=Delivery(journal_root=tmp_path)).start_run()
    run.log_metrics({"loss": 1.0})
    (delivery,) = wait_for(lambda: delivery_processes(tmp_path), "delivery starts")
    wait_for(lambda: delivery.nice() == 10, "delivery lowers its priority")
    autogroup = Path(f"/proc/{delivery.pid}/autogroup")
    if not _is_grouped():
        pytest.skip("the kernel does not schedule sessions as groups here")

    wait_for(lambda: autogroup.read_text().split()[-1] == "19", "delivery has the lowest priority")
    run.end()
    assert run.flush().complete
    wait_for(lambda: autogroup.read_text().split()[-1] == "10", "delivery raises its priority after training")


def test_idle_work_is_done_and_its_exception_is_raised() -> None:
    done: list[int] = []
    priority = Priority.__new__(Priority)
    for priority._grouped in (True, False):
        priority.run_idle(lambda: done.append(1))
        with pytest.raises(ImportError, match="broken"):
            priority.run_idle(fail)

    assert done == [1, 1]


def fail() -> None:
    raise ImportError("broken")
