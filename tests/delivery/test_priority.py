"""How the kernel ranks delivery behind training, and for how long."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from faults.proxy import Fault, running_proxy
from processes import delivery_processes, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.priority import _is_grouped


def test_delivery_is_behind_training_until_a_record_has_waited_too_long(server, tmp_path: Path) -> None:
    with running_proxy(server.uri) as proxy:
        run = MLflowTracker(proxy.uri, "priority", delivery=Delivery(journal_root=tmp_path)).start_run()
        (delivery,) = wait_for(lambda: delivery_processes(tmp_path), "delivery starts")
        lowered = min(psutil.Process().nice() + 5, 19)
        wait_for(lambda: delivery.nice() == lowered, "delivery lowers its priority")
        autogroup = Path(f"/proc/{delivery.pid}/autogroup")
        if not _is_grouped():
            pytest.skip("the kernel does not schedule sessions as groups here")

        def is_at(nice: int) -> bool:
            return int(autogroup.read_text().split()[-1]) == nice

        wait_for(lambda: run.report().pending == 0, "delivery has caught up")
        wait_for(lambda: is_at(10), "delivery steps back")
        proxy.fault(Fault("answer", statuses=(503,)))
        run.log_metrics({"loss": 1.0})
        for nice in (5, 0):
            wait_for(lambda weight=nice: is_at(weight), f"a record that waits raises delivery to {nice}")
        proxy.fault()
        wait_for(lambda: is_at(10), "delivery steps back")
        run.end()
        assert run.flush().complete
        wait_for(lambda: is_at(0), "delivery has ordinary weight once training has ended")
