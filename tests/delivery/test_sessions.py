"""What delivery knows about a session that may have ended unnoticed."""

from __future__ import annotations

from pathlib import Path

from faults.proxy import Fault, running_proxy
from processes import stop_delivery, wait_for
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._delivery.session_journal import SessionJournal
from tracking_callbacks._journal.frames import JournalWriter
from tracking_callbacks._journal.layout import SessionState
from tracking_callbacks._journal.owner import OwnerWatch, current_owner
from tracking_callbacks._journal.records import Metrics, RunEnded, SessionOpened, StoreAddress, now_ms


def test_a_session_is_known_to_be_open_while_its_journal_is_fully_read(tmp_path: Path) -> None:
    opened = SessionOpened("key", 1, now_ms(), current_owner(), StoreAddress("http://127.0.0.1:9", str(tmp_path)), "e")
    writer = JournalWriter(tmp_path / "1.journal")
    writer.append(opened)
    watch = OwnerWatch(current_owner())
    session = SessionJournal(writer.path, opened, SessionState(), watch)

    assert session.open_until() == 0  # nothing has been read yet
    began = now_ms()
    session.state.points = session.read(0).end
    assert began <= session.open_until() <= now_ms()  # everything has been read
    writer.append(Metrics(now_ms(), 1, {"loss": 1.0}))
    before = session.open_until()
    session.state.points = session.read(session.state.points).end
    after_read = session.open_until()
    writer.append(RunEnded(now_ms(), "FINISHED"))

    assert began <= before <= after_read == session.open_until()  # it may have ended since then
    session.read(session.state.points)
    assert session.finished()
    watch.close()
    writer.close()


def test_a_tag_does_not_go_back_when_a_lost_request_is_carried_out_late(server, client, tmp_path: Path) -> None:
    with running_proxy(server.uri) as proxy:
        root = tmp_path / "journal"
        run = MLflowTracker(proxy.uri, "late tags", record=False, delivery=Delivery(journal_root=root)).start_run()
        assert run.run_id is not None
        wait_for(lambda: run.report().pending == 0, "the run is there")
        proxy.fault(Fault("late", paths=("/runs/log-batch",), seconds=12, times=1))
        run.set_tags({"progress": "1"})
        wait_for(lambda: proxy.struck["late"], "the first text is on its way")
        stop_delivery(root)
        run.set_tags({"progress": "2"})
        run.end()
        wait_for(lambda: client.get_run(run.run_id).data.tags.get("progress") == "2", "the second text arrives")
        wait_for(lambda: client.get_run(run.run_id).info.status == "FINISHED", "the status does not wait")

        assert run.flush().complete
        wait_for(lambda: proxy.late, "the lost request is carried out")
        assert client.get_run(run.run_id).data.tags["progress"] == "2"
