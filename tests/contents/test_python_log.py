"""The Python log records what passes through logging and leaves the user's logging unchanged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tracking_callbacks._contents import python_log
from tracking_callbacks._contents.python_log import TrainLog


@pytest.fixture
def log(tmp_path: Path):
    opened = TrainLog(tmp_path / "live")
    yield opened
    opened.close()


def lines(tmp_path: Path) -> list[str]:
    """Return the lines, without what threads of earlier tests say of their delivery."""
    written = (tmp_path / "live" / "train.log").read_text().splitlines()
    return [line for line in written if " tracking_callbacks." not in line]


def test_the_users_handlers_levels_and_factory_stay_unchanged(tmp_path) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogRecordFactory())
    opened = TrainLog(tmp_path / "live")
    during = (list(root.handlers), root.level)
    opened.close()

    assert during == before[:2]
    assert (list(root.handlers), root.level, logging.getLogRecordFactory()) == before


def test_loggers_that_do_not_propagate_are_recorded_at_their_own_level(log, tmp_path) -> None:
    alone = logging.getLogger("alone")
    alone.propagate = False
    alone.warning("heard")
    alone.debug("below its level")
    try:
        raise ValueError("api_key=k-1234")
    except ValueError:
        alone.exception("failed")

    written = lines(tmp_path)
    assert written[0].endswith("WARNING alone: heard")
    assert "Traceback" in written[2]
    assert written[-1] == "ValueError: api_key=***"
    assert not any("below" in line for line in written)


def test_what_a_notebooks_kernel_logs_is_left_out(log, tmp_path) -> None:
    kernel = logging.getLogger("IPKernelApp")
    kernel.setLevel(logging.DEBUG)  # as ipykernel 7 does
    kernel.debug("Content: {'code': 'a cell'}")
    logging.getLogger("mine").warning("heard")

    assert [line[24:] for line in lines(tmp_path)] == ["WARNING mine: heard"]


def test_a_factory_that_the_user_installs_over_ours_stays(tmp_path) -> None:
    original = logging.getLogRecordFactory()
    first = TrainLog(tmp_path / "live")
    ours = logging.getLogRecordFactory()

    def over(*args, **kwargs):
        return ours(*args, **kwargs)

    logging.setLogRecordFactory(over)
    try:
        first.close()
        assert logging.getLogRecordFactory() is over
        second = TrainLog(tmp_path / "live")
        assert logging.getLogRecordFactory() is over
        logging.getLogger("x").warning("once")
        second.close()
    finally:
        logging.setLogRecordFactory(original)

    assert [line.endswith("x: once") for line in lines(tmp_path)] == [True]


def test_the_python_log_never_raises_and_does_not_record_itself(log, tmp_path, monkeypatch) -> None:
    class Odd:
        def __str__(self) -> str:
            logging.getLogger("x").warning("while formatting")
            raise RuntimeError("no text")

    record = logging.getLogRecordFactory()("x", logging.WARNING, "f", 1, "%s", (Odd(),), None)
    logging.getLogger("x").warning("after")

    assert record.msg == "%s"
    assert [line.rpartition(": ")[2] for line in lines(tmp_path)] == ["after"]


def test_a_forked_child_writes_nothing(log, tmp_path) -> None:
    logging.getLogger("x").warning("parent")
    if (child := os.fork()) == 0:
        logging.getLogger("x").warning("child")
        os._exit(0)
    os.waitpid(child, 0)

    assert len(lines(tmp_path)) == 1


def test_the_end_of_a_long_log_is_kept(log, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(python_log, "MAX_LOG_BYTES", 2000)
    for number in range(200):
        logging.getLogger("x").warning("line %03d", number)

    files = sorted(path.name for path in (tmp_path / "live").iterdir())
    assert files == ["train.1.log", "train.log"]
    assert all((tmp_path / "live" / name).stat().st_size <= 2000 for name in files)
    assert lines(tmp_path)[-1].endswith("line 199")


@pytest.mark.parametrize("created", [1_700_000_000.9997, 1_700_000_000.0, 1_700_000_059.1234])
def test_a_line_reads_as_logging_itself_formats_it(tmp_path: Path, created: float) -> None:
    record = logging.LogRecord("a.b", logging.INFO, "file.py", 1, "step %d of %s", (3, "ü"), None)
    record.created, record.msecs = created, created % 1 * 1000
    log = TrainLog(tmp_path)
    log.take(record)
    log.close()
    usual = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s").format(record)

    assert (tmp_path / "train.log").read_text(encoding="utf-8") == f"{usual}\n"
