"""Alerts, as real receivers get them: a webhook, a mailbox, a program."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from processes import free_port, run_script, script, wait_for
from tracking_callbacks import Alert, ConfigError, MLflowTracker
from tracking_callbacks._values.alerts import parse_condition

RUN = """
    import math, os, sys, time
    from tracking_callbacks import Alert, Delivery, MLflowTracker
    from tracking_callbacks._journal.records import Tags
    alerts = [Alert(when, notify=sys.argv[1:] or "$HOOK") for when in {conditions!r}]
    tracker = MLflowTracker({uri!r}, "nightly", alerts=alerts, delivery=Delivery(flush_timeout={flush}, grace=20))
    run = tracker.start_run("night run")
    for step in range(40):
        run.log_metrics({{"train/loss": 0.5 + step % 3 / 10}}, step)
    print("logged", flush=True)
    {then}
"""


@contextmanager
def webhook(fail_first: int = 0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Receive JSON on the loopback interface; the first requests are answered with 503."""
    received: list[dict[str, Any]] = []
    refused = [fail_first]

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if refused[0]:
                refused[0] -= 1
                self.send_response(503)
            else:
                received.append(json.loads(body))
                self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/services/s3cret", received
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """Receive mail by SMTP."""
    mails: list[str] = []

    class Receiver(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline():
                if line.upper().startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    mails.append("".join(text.decode() for text in iter(self.rfile.readline, b".\r\n")))
                elif line.upper().startswith(b"QUIT"):
                    self.wfile.write(b"221 bye\r\n")
                    return
                self.wfile.write(b"250 ok\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1], mails
        finally:
            server.shutdown()


def code(*conditions: str, uri: str, then: str = "run.end()", flush: float = 30) -> str:
    return RUN.format(conditions=conditions, uri=uri, then=then, flush=flush)


def test_a_metric_beyond_its_bound_is_told_once_with_the_link_to_the_run(server, client, tmp_path: Path) -> None:
    then = "[run.log_metrics({'train/loss': 50.0 + step}, step) for step in range(40, 45)]; run.end()"
    with webhook(fail_first=1) as (url, received):
        program = code("train/loss > 10", "eval/f1 < 0.5", uri=server.uri, then=then)
        done = run_script(program, cwd=tmp_path, env={"HOOK": url})
        (notice,) = wait_for(lambda: received, "the alert arrives")

    assert done.returncode == 0, done.stderr
    assert notice["condition"] == "train/loss > 10"
    assert notice["what"] == "train/loss = 90 at step 40"
    assert (notice["run"], notice["experiment"]) == ("night run", "nightly")
    run = client.get_run(notice["run_id"])
    assert notice["url"] == f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert "s3cret" not in "".join(path.read_text() for path in tmp_path.rglob("delivery.log"))


def test_a_killed_trainer_is_told_of_while_the_server_is_away(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    conditions = ("dies", "train/loss is nan", "fails")
    with webhook() as (url, received):
        then = "run.log_metrics({'train/loss': math.nan}, 40); print('nan', flush=True); time.sleep(600)"
        with script(code(*conditions, uri=uri, then=then), cwd=tmp_path, env={"HOOK": url}) as trainer:
            assert trainer.stdout is not None
            while trainer.stdout.readline() != "nan\n":
                pass
            wait_for(lambda: [one["condition"] for one in received] == ["train/loss is nan"], "NaN is told of")
            trainer.kill()
            trainer.wait()
        wait_for(lambda: len(received) == 3, "the death is told of")

    told = {one["condition"]: one["what"] for one in received}
    assert told["dies"] == told["fails"] == "the training process was killed"
    assert (received[0]["run_id"], received[0]["url"]) == (None, "")


@pytest.mark.parametrize(
    ("condition", "then", "what"),
    [
        ("train/loss explodes", "run.log_metrics({'train/loss': 60.0}, 40); run.end()", "train/loss = 60 at step 40"),
        ("fails", "run.fail(ArithmeticError('diverged'))", "the run has FAILED"),
        ("no progress for 1 s", "time.sleep(4); run.end()", "no metric for"),
        # What a later rule of the store may let into a journal.
        ("records are refused", "run.journal.append(Tags({'bad//tag': 'x'})); run.end()", "the store has refused"),
    ],
)  # fmt: skip
def test_each_kind_of_condition_is_found(condition: str, then: str, what: str, server, tmp_path: Path) -> None:
    with webhook() as (url, received):
        done = run_script(code(condition, uri=server.uri, then=then), cwd=tmp_path, env={"HOOK": url})
        assert done.returncode == 0, done.stderr
        (notice,) = wait_for(lambda: received, "the alert arrives")

    assert notice["what"].startswith(what)


@pytest.mark.parametrize(
    "then", ["run.end()", "run.set_tags({'tracking_callbacks.pruned': 'true'}); run.end('KILLED')"]
)
def test_a_run_in_which_nothing_goes_wrong_tells_nothing(then: str, server, tmp_path: Path) -> None:
    conditions = ("train/loss > 10", "train/loss explodes", "train/loss is not finite", "fails", "dies")
    with webhook() as (url, received):
        done = run_script(code(*conditions, uri=server.uri, then=then), cwd=tmp_path, env={"HOOK": url})

    assert (done.returncode, received) == (0, [])


def test_mail_and_programs_are_told_too(server, tmp_path: Path) -> None:
    program = tmp_path / "notify.py"
    program.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')")
    with mailbox() as (port, mails):
        then = "run.log_metrics({'train/loss': 99.0}, 40); run.end()"
        text = code("train/loss >= 99", uri=server.uri, then=then)
        channels = ["mailto:team@example.org", f"command:{sys.executable} {program} {tmp_path}/told.json", "$MISSING"]
        text = text.replace('sys.argv[1:] or "$HOOK"', repr(channels))
        done = run_script(text, cwd=tmp_path, env={"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(port)})
        assert done.returncode == 0, done.stderr
        (mail,) = wait_for(lambda: mails, "the mail arrives")

    assert "To: team@example.org" in mail
    assert "train/loss =3D 99 at step 40" in mail or "train/loss = 99 at step 40" in mail
    (line,) = (tmp_path / "told.json").read_text().splitlines()
    assert json.loads(line)["condition"] == "train/loss >= 99"


@pytest.mark.parametrize(
    ("when", "notify", "expected"),
    [
        ("train/loss = 10", "$HOOK", "expected a condition such as"),
        ("train/loss > ten", "$HOOK", "expected a condition such as"),
        ("__import__('os')", "$HOOK", "expected a condition such as"),
        ("fails", "https://hooks.slack.com/s3cret", "belongs into the environment"),
        ("fails", "slack", "expected '$NAME'"),
        ("", "$HOOK", "when"),
    ],
)
def test_what_is_no_alert_is_refused_before_training(when: str, notify: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Alert(when, notify)

    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["HOOK", "SMTP_HOST"]),
        ({"HOOK": " ", "SMTP_HOST": "127.0.0.1", "SMTP_USERNAME": "me"}, ["HOOK", "SMTP_PASSWORD"]),
        ({"HOOK": "http://127.0.0.1:9", "SMTP_HOST": "127.0.0.1"}, []),
    ],
)
def test_a_variable_that_an_alert_needs_and_that_is_not_set_is_said_once_at_the_start(
    given: dict[str, str], missing: list[str], tmp_path: Path
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    text = RUN.format(uri=uri, conditions=["dies", "records are refused"], flush=0.1, then="tracker.start_run().end()")
    text = text.replace('sys.argv[1:] or "$HOOK"', '("$HOOK", "mailto:a@b", "command:true")')
    done = run_script(text, cwd=tmp_path, env=given)
    offline = run_script(text.replace("Delivery(", "Delivery(offline=True, "), cwd=tmp_path, env=given)

    said = [line for line in done.stderr.splitlines() if "not set" in line]
    assert done.returncode == 0
    assert said == [f"alerts cannot be sent: {' and '.join(missing)} not set in the environment"] * bool(missing)
    assert "not set" not in offline.stderr  # an offline run sends no alerts


def test_alerts_come_from_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "tracking.yaml"
    config.write_text(
        "alerts:\n  - {when: 'eval/f1 < 0.5', notify: $HOOK}\n  - {when: fails, notify: [$HOOK, 'mailto:a@b'] }"
    )
    found = MLflowTracker(config=config).settings.alerts

    assert [one.when for one in found] == ["eval/f1 < 0.5", "fails"]
    assert found[1].channels == ("$HOOK", "mailto:a@b")
    config.write_text("alerts: [{wenn: fails, notify: $HOOK}]")
    with pytest.raises(ConfigError, match=r"unknown key 'alerts\[0\]\.wenn'"):
        MLflowTracker(config=config)


def test_a_condition_is_taken_apart() -> None:
    bound = parse_condition("'my metric' <= -1.5e3")

    assert (bound.kind, bound.metric, bound.holds(-1500.0), bound.holds(0.0)) == ("bound", "my metric", True, False)
    assert parse_condition("no progress for 10 min").number == 600.0
