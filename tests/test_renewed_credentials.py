"""Credentials that change in the training process reach its delivery process, and no file."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.proxy import running_proxy
from processes import delivery_processes, own_artifacts, script, wait_for
from tracking_callbacks._journal.handover import Renewal

TRAINER = """
    import os, sys
    from tracking_callbacks import Delivery, MLflowTracker
    run = MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(flush_timeout=60)).start_run("renewed")
    run.log_metrics({{"loss": 1.0}}, step=1)
    print("up", flush=True)
    name, text = sys.stdin.readline().split()
    os.environ[name] = text
    run.log_text("hello", "hello.txt")
    run.end()
    print(run.flush().complete, flush=True)
"""


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize("way", ["token", "password", "URI"])
def test_renewed_credentials_reach_delivery_and_no_file_or_command_line(server, client, tmp_path, way) -> None:
    with running_proxy(server.uri) as proxy:

        def uri(password: str) -> str:
            return proxy.uri.replace("http://", f"http://me:{password}@")

        old, new, name, shown = {
            "token": ("old-secret", "new-secret", "MLFLOW_TRACKING_TOKEN", "Bearer {}".format),
            "password": ("old-secret", "new-secret", "MLFLOW_TRACKING_PASSWORD", basic),
            "URI": (uri("old-secret"), uri("new-secret"), "MLFLOW_TRACKING_URI", basic),
        }[way]
        proxy.passes = {shown("old-secret")}
        env = {name: old} | ({"MLFLOW_TRACKING_USERNAME": "me"} if way == "password" else {})
        place = old if way == "URI" else proxy.uri
        with script(TRAINER.format(uri=place, experiment=tmp_path.name), cwd=tmp_path, env=env) as trainer:
            assert trainer.stdout.readline() == "up\n"
            wait_for(lambda: client.get_experiment_by_name(tmp_path.name), "the old credentials pass")
            proxy.passes = {shown("new-secret")}
            (process,) = delivery_processes(tmp_path)
            trainer.stdin.write(f"{name} {new}\n")
            trainer.stdin.flush()

            assert trainer.stdout.readline() == "True\n", trainer.stderr.read()
            assert "new-secret" not in " ".join(process.cmdline())
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert (run.info.status, own_artifacts(client, run.info.run_id)) == ("FINISHED", ["hello.txt"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"new-secret" in path.read_bytes()]


def test_a_renewal_holds_what_changed_and_what_was_deleted() -> None:
    renewal = Renewal.between({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"})

    assert renewal == Renewal({"b": "4", "c": None, "d": "5"})
    assert Renewal.decode(renewal.encode()) == renewal
    assert Renewal.between({"a": "1"}, {"a": "1"}) is None


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """An S3 server on the loopback interface that checks keys and session tokens."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


S3_TRAINER = """
    import os, sys, time
    from tracking_callbacks import Delivery, MLflowTracker
    run = MLflowTracker({uri!r}, {experiment!r}, delivery=Delivery(flush_timeout=60)).start_run("renewed")
    run.log_text("one", "one.txt")
    print("up", flush=True)
    os.environ["AWS_ACCESS_KEY_ID"] = sys.stdin.readline().strip()
    for number in range(80):  # the key is looked at every ten seconds
        run.log_text("more", f"{{number}}.txt")
        time.sleep(0.2)
    run.end()
    print(run.flush().complete, flush=True)
"""


def test_a_renewed_cloud_key_reaches_the_artifacts_client(server, client, s3, tmp_path, monkeypatch) -> None:
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "OLD", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, text in (keys | {"MLFLOW_S3_ENDPOINT_URL": s3}).items():
        monkeypatch.setenv(name, text)
    with running_proxy(s3) as proxy:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.uri)
        boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="runs")
        client.create_experiment(tmp_path.name, artifact_location="s3://runs/here")
        with script(S3_TRAINER.format(uri=server.uri, experiment=tmp_path.name), cwd=tmp_path) as trainer:
            assert trainer.stdout.readline() == "up\n"
            wait_for(lambda: any("OLD" in shown for shown in proxy.shown), "the old key is used")
            trainer.stdin.write("NEW\n")
            trainer.stdin.flush()

            assert trainer.stdout.readline() == "True\n", trainer.stderr.read()
            assert any("NEW" in shown for shown in proxy.shown)
        listed = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="runs")["Contents"]

    assert {Path(entry["Key"]).name for entry in listed} >= {"one.txt", "0.txt", "79.txt"}
