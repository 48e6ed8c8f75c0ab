"""Every way in which training can end (rows 8 and 9 of the fault matrix)."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from faults.trainers import SCENARIOS, Trainer
from processes import wait_for

# What happens, the exit code without our package, the run's status, the last line of its error.txt.
ENDINGS = [
    ("exception", 1, "FAILED", "RuntimeError: diverged"),
    (signal.SIGINT, -signal.SIGINT, "KILLED", "KeyboardInterrupt"),
    (signal.SIGTERM, -signal.SIGTERM, "KILLED", None),
    ("sys.exit(3)", 3, "KILLED", None),
    ("os._exit(1)", 1, "KILLED", None),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_status_is_correct_however_training_ends(scenario, trainers, server, client, tmp_path) -> None:
    started = []
    for number, (ending, *expected) in enumerate(ENDINGS):
        paused = isinstance(ending, signal.Signals)
        trainer = trainers.start(
            scenario, tmp_path / f"ending-{number}", server.uri, trouble="pause" if paused else ending
        )
        if paused:
            wait_for(lambda now=trainer: now.reached("paused"), "training reaches its third step")
            trainer.send(ending)
        started.append((trainer, ending, *expected))

    for trainer, ending, code, status, last_line in started:
        assert trainer.wait() == code, (ending, trainer.errors)
        trainer.delivered()
        (run,) = trainer.check_exact(client)
        assert run.info.status == status, ending
        # The `with` block sees sys.exit(3); a callback only sees that training never finished.
        shown = "SystemExit: 3" if (scenario, ending) == ("core", "sys.exit(3)") else last_line
        assert error_of(client, run, trainer) == shown
        assert tracebacks(trainer.errors) == ([last_line] if ending in ("exception", signal.SIGINT) else [])


def tracebacks(errors: str) -> list[str]:
    """Return the last line of each traceback that a trainer printed."""
    shown = errors.split("Traceback (most recent call last):\n")[1:]
    return [next(line for line in text.splitlines() if not line.startswith(" ")) for text in shown]


def error_of(client: Any, run: Any, trainer: Trainer) -> str | None:
    """Return the last line of the run's traceback, which is also a tag."""
    if not any(entry.path == "error.txt" for entry in client.list_artifacts(run.info.run_id)):
        assert "tracking_callbacks.error" not in run.data.tags
        return None
    path = client.download_artifacts(run.info.run_id, "error.txt", str(trainer.folder))
    with open(path, encoding="utf-8") as lines:
        text = lines.read()
    last = text.strip().splitlines()[-1]
    assert text.startswith("Traceback (most recent call last)")
    assert run.data.tags["tracking_callbacks.error"] == last
    return last


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_again_after_a_caught_exception_starts_a_new_run(scenario, trainers, server, client, tmp_path) -> None:
    trainer = trainers.start(scenario, tmp_path / "caught", server.uri, trouble="exception", caught=True)

    assert trainer.wait() == 0, trainer.errors
    trainer.delivered()
    assert trainer.reached("diverged")
    first, second = trainer.check_exact(client)
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert first.info.end_time <= second.info.start_time
    assert max(call.returned for call in trainer.ledger.of_run(key_of(first)).calls) <= second.info.start_time
    assert "Traceback" not in trainer.errors


def key_of(run: Any) -> str:
    return str(run.data.tags["tracking_callbacks.run_key"])
