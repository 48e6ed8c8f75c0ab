"""Delivery of journals that a bad disk has damaged: only the damaged records are lost (row 13 of the fault matrix).

tests/test_journal.py tries the reader on hundreds of cases; this module tests whole deliveries.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from pathlib import Path

from faults.exactness import stored_runs
from faults.trainers import SOAK
from processes import run_script
from tracking_callbacks._journal.frames import read_chunk
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.records import Metrics, Params, Record, RunEnded, SessionOpened, Tags

JOURNALS = 200 if SOAK else 40
WRITE = f"""
    from tracking_callbacks import Delivery, MLflowTracker
    tracker = MLflowTracker(delivery=Delivery(offline=True))
    for number in range({JOURNALS}):
        with tracker.start_run(f"run {{number}}") as run:
            for step in range(12):
                run.log_metrics({{"loss": step / 7, "accuracy": -step}}, step=step)
                run.log_params({{f"param_{{step}}": step}})
                run.set_tags({{f"tag_{{step}}": step}})
"""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a flipped byte, a torn tail, or a stretch inserted, zeroed or missing."""
    at = chance.randrange(len(content))
    until = min(at + chance.randint(1, 100), len(content))
    match chance.choice(["flip", "insert", "cut", "zero", "remove"]):
        case "flip":
            return content[:at] + bytes([content[at] ^ chance.randint(1, 255)]) + content[at + 1 :]
        case "insert":
            return content[:at] + chance.randbytes(until - at) + content[at:]
        case "cut":
            return content[:at]
        case "zero":
            return content[:at] + bytes(until - at) + content[until:]
        case _:
            return content[:at] + content[until:]


def damage_beyond_the_header(path: Path, chance: random.Random) -> tuple[list[Record], bool]:
    """Damage a journal but keep one header; return the intact records, and whether the damage leaves a trace."""
    content = path.read_bytes()
    records = read_chunk(path, 0, complete=True).records
    begins = [0, *(end for _, end in records)]
    frames = [content[begin:end] for begin, (_, end) in zip(begins, records, strict=False)]
    while True:
        changed = damaged(content, chance)
        whole = [(record, frame) for (record, _), frame in zip(records, frames, strict=True) if frame in changed]
        if changed != content and any(isinstance(record, SessionOpened) for record, _ in whole):
            path.write_bytes(changed)
            left = changed.replace(frames[0], b"")  # the header is there twice
            return [record for record, _ in whole], left != b"".join(
                frame for record, frame in whole if not isinstance(record, SessionOpened)
            )


def test_intact_records_of_a_damaged_journal_are_delivered_and_the_damage_is_counted(server, client, tmp_path) -> None:
    chance = random.Random(13)
    experiment = f"damaged-{uuid.uuid4().hex[:8]}"
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    written = run_script(WRITE, cwd=tmp_path, env=env)
    assert written.returncode == 0, written.stderr
    root = JournalRoot(tmp_path / ".tracking_callbacks")
    expected = {folder.run_key: damage_beyond_the_header(folder.journals()[0], chance) for folder in root.runs()}
    assert len(expected) == JOURNALS

    synced = subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", "sync"],
        cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip

    assert synced.returncode == 0, synced.stderr
    runs = stored_runs(client, experiment)
    assert runs.keys() == expected.keys()
    for key, (records, visible) in expected.items():
        run = client.get_run(runs[key].info.run_id)
        stored = sorted(
            (name, point.timestamp, point.step, point.value)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        )
        assert stored == sorted(
            (name, record.timestamp, record.step, value)
            for record in records if isinstance(record, Metrics) for name, value in record.metrics.items()
        )  # fmt: skip
        assert run.data.params == _merged(record.params for record in records if isinstance(record, Params))
        tags = {name: text for name, text in run.data.tags.items() if name.startswith("tag_")}
        assert tags == _merged(record.tags for record in records if isinstance(record, Tags))
        ended = any(isinstance(record, RunEnded) for record in records)
        assert run.info.status == ("FINISHED" if ended else "KILLED")
        state = json.loads((root.path / "delivered" / f"{key}.json").read_text())
        assert (sum(session["damaged"] for session in state["sessions"].values()) > 0) == visible
    assert not root.runs()


def _merged(mappings) -> dict[str, str]:
    return {name: text for mapping in mappings for name, text in mapping.items()}
