"""Secrets never reach the journal, the store or a log file, wherever they enter a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from processes import artifacts, run_script, stop_delivery

# One word to search for in each; the text next to it says where it is planted.
SECRETS = {
    "param by its name": "plantedparam01",
    "nested training argument": "plantednested02",
    "environment-like key": "plantedenvkey03",
    "password in a URI": "planteduri04",
    "Hugging Face token": "hf_plantedhubtoken05abcdefghij",
    "AWS keys": "plantedawssecret06",
    "Authorization header in a log line": "plantedheader07",
    "option of the command line": "plantedoption08",
    "password of a git remote": "plantedremote09",
    "untracked .env": "planteddotenv10",
    "changed, tracked .env": "plantedtrackedenv11",
    "key file in the diff": "plantedkeyfile12",
    "config file": "plantedconfig13",
    "tag": "plantedtag14",
    "source of a dataset": "planteddataset15",
    "text of an exception": "plantedexception16",
    "literal in the entry script": "plantedliteral17",
    "literal in the diff": "plantedchange18",
    "password of the tracking URI": "plantedtracking19",
    "MLFLOW_TAGS": "plantedenvtag20",
}

TRAINING = """
import argparse, dataclasses, logging, sys
from tracking_callbacks import MLflowTracker, Recording

my_api_key = "plantedliteral17"
'''
CHANGED'''

@dataclasses.dataclass
class Arguments:
    lr: float = 0.1
    hub_token: str = "plantednested02"
    hub: dict = dataclasses.field(default_factory=lambda: {"accessToken": "plantednested02", "url": "u"})

record = Recording(config_files=["extra.json"])
tracker = MLflowTracker(config="settings.yaml", tags={"deploy_key": "plantedtag14"}, record=record)
run = tracker.start_run("name", tags={"note": "password=plantedtag14"})
run.log_params({
    "api_key": "plantedparam01",
    "AWS_SECRET_ACCESS_KEY": "plantedenvkey03",
    "database": "postgresql://me:planteduri04@db/x",
    "arguments": Arguments(),
    "token_of": "hf_plantedhubtoken05abcdefghij",
    "keys": ["AKIAPLANTED6ABCDEFGH"],
    "aws": "aws_secret_access_key=plantedawssecret06",
    "long": "x" * 6000 + " password=plantedparam01",
})
run.set_tags({"password": "plantedtag14", "url": "https://x/?token=plantedtag14&n=3"})
run.log_dict({"arguments": Arguments(), "hub": "hf_plantedhubtoken05abcdefghij"}, "arguments.json")
run.log_dataset("set", source="s3://key:planteddataset15@bucket/x?X-Amz-Signature=planteddataset15", schema={"a": "b"})
logger = logging.getLogger("client")
logger.warning("sent %s", {"Authorization": "Bearer plantedheader07"})
logger.warning("Authorization: Basic plantedheader07==")
logger.warning("api_key=plantedheader07 retry")
run.log_metrics({"loss": 1.0})
raise RuntimeError("cannot reach https://me:plantedexception16@host with api_key='plantedexception16'")
"""


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository full of secrets, with changes since its last commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init")
    for name in ("prod.env", "server.pem", "notes.yaml", "train.py", "settings.yaml", "extra.json"):
        (folder / name).write_text("before\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "one")
    git(folder, "remote", "add", "origin", "https://me:plantedremote09@github.com/a/b.git")
    (folder / ".env").write_text("ANYTHING=planteddotenv10\n")
    (folder / "prod.env").write_text("ANYTHING=plantedtrackedenv11\n")
    (folder / "server.pem").write_text("plantedkeyfile12\n")
    (folder / "notes.yaml").write_text(
        "secret: planted words plantedchange18\n"
        "-----BEGIN OPENSSH PRIVATE KEY-----\nplantedkeyfile12\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    (folder / "train.py").write_text(TRAINING.replace("CHANGED", 'hub_token = "plantedchange18"'))
    (folder / "extra.json").write_text('{"lr": 3, "clientSecret": "plantedconfig13", "api_keys": ["plantedconfig13"]}')
    return folder


def leaks(*places: Path) -> list[str]:
    """Return which secrets are in which files at or below `places`."""
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    return [
        f"{kind} in {path}"
        for path in files
        for kind, word in SECRETS.items()
        if word.encode() in path.read_bytes() or b"AKIAPLANTED6" in path.read_bytes()
    ]


@pytest.mark.parametrize("delivered", [True, False])
def test_no_secret_is_written_down(server, client, project, tmp_path, delivered) -> None:
    journal = tmp_path / "journal"
    uri = server.uri.replace("://", "://me:plantedtracking19@")
    environment = {
        "MLFLOW_TRACKING_URI": uri if delivered else "http://me:plantedtracking19@127.0.0.1:9",
        "MLFLOW_EXPERIMENT_NAME": f"secrets-{tmp_path.name}",
        "TRACKING_CALLBACKS_JOURNAL": str(journal),
        "MLFLOW_TAGS": '{"api_key": "plantedenvtag20"}',
        "WANDB_API_KEY": "plantedenvkey03",
    }
    start = """
        import runpy, sys
        sys.argv = ["train.py", "--api-key=plantedoption08", "--token", "plantedoption08", "--lr", "3"]
        sys.orig_argv = ["python", *sys.argv]
        runpy.run_path("train.py", run_name="__main__")
    """
    settings = f"delivery: {{flush_timeout: {60 if delivered else 1}}}\ntags:\n  my_secret: plantedconfig13\n"
    (project / "settings.yaml").write_text(settings)
    done = run_script(start, cwd=project, env=environment)
    stop_delivery(tmp_path)  # it removes delivered records and writes its state while the test reads

    assert "RuntimeError" in done.stderr, done.stderr
    assert (journal / "delivery.log").exists()
    assert not leaks(journal)
    if not delivered:
        assert any(journal.rglob("*.journal"))  # everything is still there
        return
    experiment = client.get_experiment_by_name(environment["MLFLOW_EXPERIMENT_NAME"])
    (run,) = client.search_runs([experiment.experiment_id])
    down = tmp_path / "down"
    down.mkdir()
    client.download_artifacts(run.info.run_id, "", str(down))
    assert set(artifacts(client, run.info.run_id)) >= {
        *("arguments.json", "config/files/extra.json", "config/files/settings.yaml", "config/run.json", "error.txt"),
        *("environment/environment.json", "logs/train.log", "params/long.txt", "source/diff.patch", "source/train.py"),
        "source/untracked.txt",
    }
    stored = [path for path in server.folder.iterdir() if path.name.startswith("server.db")]
    assert stored
    assert not leaks(down, *stored)
    assert run.data.params["database"] == "postgresql://***@db/x"
    assert "***" in (down / "logs" / "train.log").read_text()
    patch = (down / "source" / "diff.patch").read_text()
    assert "Not shown, for it may hold secrets: prod.env" in patch
    assert "Not shown, for it may hold secrets: server.pem" in patch
