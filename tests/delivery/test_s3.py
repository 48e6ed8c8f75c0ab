"""Artifacts in S3, where the server passes them on and where clients write them themselves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient

from processes import delivery_processes, free_port, run_script, wait_for
from servers import start_server, stop_server
from tracking_callbacks import Delivery, MLflowTracker

SETUP_CALLS = 3  # to IAM, before S3 and IAM begin to check keys
MEGABYTES = 200


@contextmanager
def running_s3(folder: Path, *, checking: bool = True) -> Iterator[dict[str, str]]:
    """Run an S3 server with a bucket, and yield the environment of its clients.

    Args:
        folder: Where it runs.
        checking: It checks keys and signatures; it cannot check those of presigned URLs.
    """
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        cwd=folder,
        env=os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": str(SETUP_CALLS)} if checking else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        keys = {"aws_access_key_id": "setup", "aws_secret_access_key": "setup", "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=uri, **keys)

        def user() -> bool:
            try:
                return bool(iam.create_user(UserName="team"))
            except BotoCoreError:  # the server is still starting
                return False

        wait_for(user, "the S3 server answers")
        policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
        iam.put_user_policy(UserName="team", PolicyName="all", PolicyDocument=policy)
        made = iam.create_access_key(UserName="team")["AccessKey"]
        environment = {
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": uri,
        }
        bucket_of(environment, create=True)
        yield environment
    finally:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


def bucket_of(environment: dict[str, str], *, create: bool = False) -> Any:
    store = boto3.resource(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    return store.create_bucket(Bucket="runs") if create else store.Bucket("runs")


@pytest.fixture(scope="module", params=["direct", "proxied"])
def team(request, s3, tmp_path_factory) -> Iterator[Any]:
    """A server whose artifacts lie in the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in s3.items():
            patch.setenv(name, text)
        proxied = request.param == "proxied"
        started = start_server(
            tmp_path_factory.mktemp("team"), free_port(), artifacts=f"s3://runs/{request.param}", proxied=proxied
        )
    yield started
    stop_server(started)


def stored(environment: dict[str, str], name: str) -> Any:
    (found,) = [entry for entry in bucket_of(environment).objects.all() if entry.key.endswith(name)]
    return found


def large_file(path: Path) -> str:
    """Write a file of 200 MB of which no two parts are equal, and return its digest."""
    block, digest = os.urandom(1_000_000), hashlib.sha256()
    with open(path, "wb") as output:
        for number in range(MEGABYTES):
            piece = number.to_bytes(4) + block[4:]
            output.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def digest_of(found: Any) -> str:
    digest = hashlib.sha256()
    for piece in found.get()["Body"].iter_chunks(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def test_a_large_checkpoint_and_a_model_arrive_and_memory_stays_flat(
    team, s3, mlmodel, tmp_path: Path, monkeypatch
) -> None:
    for name, text in s3.items():
        monkeypatch.setenv(name, text)
    name, checkpoint = f"s3-{tmp_path.name[-20:]}", tmp_path / f"{tmp_path.name}.bin"
    digest = large_file(checkpoint)
    delivery = Delivery(journal_root=tmp_path / "journal")
    run = MLflowTracker(team.uri, "s3", record=False, delivery=delivery).start_run()
    run.log_checkpoint(checkpoint)
    run.log_model(mlmodel, registered_model_name=name, aliases=["champion"])
    checkpoint.unlink()
    (process,) = wait_for(lambda: delivery_processes(tmp_path), "delivery starts")
    sizes, children = [0], [0]

    def delivered() -> bool:
        sizes.append(process.memory_info().rss)
        children.append(len(process.children()))
        return run.report().pending == 0

    wait_for(delivered, "everything is delivered", seconds=120)
    wait_for(lambda: not process.children(), "the heavy process goes when it has nothing to do", seconds=30)
    run.end()

    assert run.flush().complete
    assert max(sizes) < 40e6
    assert max(children) == (0 if "proxied" in stored(s3, checkpoint.name).key else 1)
    assert digest_of(stored(s3, checkpoint.name)) == digest
    version = MlflowClient(team.uri, team.uri).get_model_version_by_alias(name, "champion")
    assert version.run_id == run.run_id


def test_a_large_file_goes_in_parts_where_the_server_offers_it(tmp_path: Path, monkeypatch) -> None:
    digest = large_file(tmp_path / "checkpoint.bin")
    (tmp_path / "server").mkdir()
    with running_s3(tmp_path, checking=False) as environment:
        settings = {
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
            "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "10000000",
        }
        for name, text in (environment | settings).items():
            monkeypatch.setenv(name, text)
        server = start_server(tmp_path / "server", free_port(), artifacts="s3://runs/parts")
        try:
            delivery = Delivery(journal_root=tmp_path / "journal")
            with MLflowTracker(server.uri, "parts", record=False, delivery=delivery).start_run() as run:
                run.log_checkpoint(tmp_path / "checkpoint.bin")
            assert run.flush().complete
        finally:
            stop_server(server)
        found = stored(environment, "checkpoint.bin")

        assert digest_of(found) == digest
        assert found.e_tag.strip('"').endswith(f"-{-(-MEGABYTES * 1_000_000 // (10 * 1024**2))}")


def test_wrong_keys_keep_everything_and_are_said_once(team, s3, tmp_path: Path, monkeypatch) -> None:
    if "proxied" in team.process.args[-1]:
        pytest.skip("the server has the keys")
    wrong = s3 | {"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG0"}
    with pytest.raises(ClientError):
        list(bucket_of(wrong).objects.all())
    done = run_script(
        f"""
        import time
        from tracking_callbacks import Delivery, MLflowTracker
        delivery = Delivery(flush_timeout=3, grace=0)
        with MLflowTracker({team.uri!r}, "wrong keys", record=False, delivery=delivery).start_run() as run:
            run.log_metrics({{"loss": 1.0}})
            run.log_text("content", "{tmp_path.name}.txt")
        deadline = time.monotonic() + 90
        while not run.report().last_error and time.monotonic() < deadline:
            time.sleep(0.05)
        print(run.flush().pending)
        """,
        cwd=tmp_path,
        env=wrong,
    )
    log = (tmp_path / ".tracking_callbacks" / "delivery.log").read_text()

    assert done.stdout.strip() == "1", done.stderr
    assert "refuses the credentials" in done.stderr
    assert log.count("WARNING") == 1, log
    for name, text in s3.items():
        monkeypatch.setenv(name, text)
    synced = subprocess.run(
        [sys.executable, "-m", "tracking_callbacks.cli", "sync"],
        cwd=tmp_path, env=os.environ | {"MLFLOW_TRACKING_URI": team.uri}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert synced.returncode == 0, synced.stderr
    assert stored(s3, f"{tmp_path.name}.txt").get()["Body"].read() == b"content"


def test_no_heavy_process_outlives_its_delivery_process(team, s3, tmp_path: Path, monkeypatch) -> None:
    if "proxied" in team.process.args[-1]:
        pytest.skip("there is none")
    for name, text in s3.items():
        monkeypatch.setenv(name, text)
    delivery = Delivery(journal_root=tmp_path / "journal")
    run = MLflowTracker(team.uri, "killed", record=False, delivery=delivery).start_run()
    run.log_text("content", f"{tmp_path.name}.txt")
    (process,) = wait_for(lambda: delivery_processes(tmp_path), "delivery starts")
    (heavy,) = wait_for(process.children, "the heavy process starts")
    process.kill()
    wait_for(lambda: not heavy.is_running() or heavy.status() == psutil.STATUS_ZOMBIE, "the heavy process ends")
    run.end()

    assert run.flush().complete
    assert stored(s3, f"{tmp_path.name}.txt").get()["Body"].read() == b"content"
