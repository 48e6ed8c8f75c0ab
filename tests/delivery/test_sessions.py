"""What delivery knows about a session that may have ended unnoticed."""

from __future__ import annotations

from pathlib import Path

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
