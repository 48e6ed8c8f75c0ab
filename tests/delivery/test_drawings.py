"""Delivery draws the pictures of a run from what was logged, without holding anything up."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from mlflow import MlflowClient

from processes import own_artifacts, run_script, wait_for
from tracking_callbacks import Delivery, MLflowTracker, Recording

EPISODES = "timestep,reward,length,sharpe_ratio\n" + "".join(f"{10 * n},{n},10,{n / 10}\n" for n in range(1, 40))
EQUITY = "episode,step,equity\n" + "".join(f"{n // 50 + 3},{n % 50},{100 + n % 7}\n" for n in range(150))


def pixels(client: MlflowClient, run_id: str, path: str, folder: Path) -> tuple[int, int]:
    """Return width and height of a PNG among a run's artifacts."""
    content = Path(client.download_artifacts(run_id, path, str(folder))).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_delivery_draws_the_pictures_that_a_run_requests(
    tracker: MLflowTracker, client: MlflowClient, tmp_path: Path
) -> None:
    with tracker.start_run() as run:
        for step in range(50):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
        run.log_metrics({"eval/loss": 0.5, "eval/accuracy": 0.75}, step=49)
        run.draw("learning_curves")
        run.draw("confusion_matrix", "evaluation", json.dumps({"labels": ["a", "b"], "matrix": [[3, 1], [0, 4]]}))
        run.draw("episodes", data=EPISODES, source="reward", periods_per_year="252")
        run.draw("equity", data=EQUITY)
    report = run.flush(60)

    assert (report.delivered, report.rejected, report.complete) == (52, 0, True)
    pictures = [f"figures/{name}.png" for name in ("episodes", "equity_curves", "learning_curves", "sharpe_ratio")]
    found = [entry.path for entry in client.list_artifacts(run.run_id, "figures")]
    assert sorted(found) == pictures
    for path in (*pictures, "evaluation/confusion_matrix.png"):
        width, height = pixels(client, run.run_id, path, tmp_path)
        assert min(width, height) > 500, path


def test_a_picture_that_cannot_be_drawn_does_not_stop_delivery(tracker: MLflowTracker, client: MlflowClient) -> None:
    with tracker.start_run() as run:
        run.draw("episodes", data="no table")
        run.draw("confusion_matrix", data="{}")
        run.draw("learning_curves")  # there is nothing to draw
        run.log_text("kept", "note.txt")
    report = run.flush(60)

    assert (report.delivered, report.rejected, report.complete) == (1, 0, True)
    assert own_artifacts(client, run.run_id) == ["note.txt"]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_pictures_can_be_switched_off(server, shared_journal, client: MlflowClient) -> None:
    tracker = MLflowTracker(
        server.uri, "plain", record=Recording(pictures=False), delivery=Delivery(journal_root=shared_journal)
    )
    with tracker.start_run() as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
        run.draw("learning_curves")
    run.flush(60)

    assert not client.list_artifacts(run.run_id, "figures")


def test_a_continued_run_is_drawn_from_its_beginning(server, tmp_path: Path) -> None:
    code = """
        import json
        from tracking_callbacks import Delivery, MLflowTracker, Recording
        from tracking_callbacks._delivery.pictures.drawing import points_of
        from tracking_callbacks._delivery.stores.client import MlflowStore
        with MLflowTracker().start_run() as run:
            for step in range(10):
                run.log_metrics({"train/loss": step / 7, "system/cpu": 1.0}, step=step)
        run.flush(60)
        again = MLflowTracker(delivery=Delivery(offline=True)).resume_run(run.run_key)
        for step in range(10, 20):
            again.log_metrics({"train/loss": step / 7}, step=step)
        folder = again.journal.root.run(run.run_key)
        points = points_of(folder, MlflowStore(again.settings.tracking_uri), run.run_id)
        print(json.dumps({name: list(curve.pairs()) for name, curve in points.items()}))
    """
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    done = run_script(code, cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"train/loss": [[step, step / 7] for step in range(20)]}


def test_what_an_upload_lacks_is_named_and_the_file_is_kept(server, client, tmp_path: Path) -> None:
    client.create_experiment(tmp_path.name, artifact_location="gs://no-such-bucket/here")  # wants google-cloud-storage
    delivery = Delivery(journal_root=tmp_path / "journal", flush_timeout=1, grace=0)
    run = MLflowTracker(server.uri, tmp_path.name, record=False, delivery=delivery).start_run()
    run.log_text("content", "a.txt")
    wait_for(lambda: "google" in run.report().last_error, "the missing library is named", seconds=60)

    assert run.report().rejected == 0
    assert run.report().pending == 1
