"""The page at the end of ``make demo``: what was trained, in the terminal and as one HTML file.

The page holds the report cards and pictures of the runs themselves, so it can be mailed or opened without a server.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

DESCRIPTION_TAG = "mlflow.note.content"
PICTURE_FOLDERS = ("figures", "evaluation")
UI = "http://127.0.0.1:5000"  # where `tracking-callbacks ui` serves a local store

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<base href="{{ ui }}/">
<title>What the demo has trained</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#d8dee4, #3d444d); --soft: light-dark(#f6f8fa, #151b23); }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
  table { border-collapse: collapse; display: block; overflow-x: auto; }
  th, td { border: 1px solid var(--line); padding: .3rem .7rem; text-align: left; }
  th { background: var(--soft); }
  code { background: var(--soft); padding: .1rem .3rem; overflow-wrap: anywhere; }
  pre { overflow-x: auto; }
  blockquote { border-left: 3px solid var(--line); margin-left: 0; padding-left: 1rem; }
  .pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
  figure { margin: 0; } img { width: 100%; background: white; border: 1px solid var(--line); }
  figcaption { font-size: .85rem; opacity: .75; }
  .passed { color: light-dark(#1a7f37, #3fb950); } .failed { color: light-dark(#cf222e, #f85149); }
</style>
<h1>What the demo has trained</h1>
<p>Two runs, in the store <code>{{ store }}</code>.
   {% if local %}<code>tracking-callbacks ui</code> serves it, and the links below then open the runs.{% endif %}</p>
<table>
  <tr><th>Model</th><th>Run</th><th>Status</th><th>Loaded back from the registry</th></tr>
  {% for one in parts %}
  <tr><td>{{ one.model }}</td><td><a href="{{ one.link }}">{{ one.run.info.run_name }}</a></td>
      <td>{{ one.run.info.status }}</td>
      <td>
        {% for check in one.checks %}
        <div class="{{ 'passed' if check.passed else 'failed' }}">{{ check.text }}</div>
        {% endfor %}
      </td></tr>
  {% endfor %}
</table>
{% for one in parts %}
<section>
  <h2>{{ one.title }}</h2>
  {{ one.card }}
  <div class="pictures">
  {% for picture in one.pictures %}
    <figure><img alt="{{ picture.name }}" src="data:image/png;base64,{{ picture.content }}">
      <figcaption>{{ picture.name }}</figcaption></figure>
  {% endfor %}
  </div>
</section>
{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Check:
    """One comparison of a reloaded model with what its run logged."""

    text: str
    passed: bool


@dataclass(frozen=True)
class Trained:
    """A model that the demo has trained.

    Attributes:
        title: The heading of its part of the page.
        version: Its version in the registry.
        checks: How the reloaded model compares.
    """

    title: str
    version: ModelVersion
    checks: list[Check]


def write_page(client: MlflowClient, store: str, trained: list[Trained], path: Path) -> None:
    """Write the HTML page; everything on it comes from the store."""
    local = not store.startswith("http")
    parts = []
    for one in trained:
        run = client.get_run(one.version.run_id)
        parts.append(
            {
                "title": one.title,
                "model": f"{one.version.name} v{one.version.version}",
                "run": run,
                "link": f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}",
                "checks": one.checks,
                "card": Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(_card(run))),
                "pictures": _pictures(client, run.info.run_id),
            }
        )
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        page.render(store=store, ui=UI if local else store.rstrip("/"), local=local, parts=parts), encoding="utf-8"
    )


def print_page(client: MlflowClient, trained: list[Trained], console: Console | None = None) -> None:
    """Print the same in the terminal, without the pictures."""
    console = console or Console()
    table = Table("model", "run", "status", "loaded back from the registry")
    for one in trained:
        run = client.get_run(one.version.run_id)
        checks = "\n".join(f"[{'green' if check.passed else 'red'}]{check.text}[/]" for check in one.checks)
        table.add_row(f"{one.version.name} v{one.version.version}", run.info.run_name, run.info.status, checks)
        console.rule(one.title)
        console.print(Markdown(_card(run)))
    console.rule("What the demo has trained")
    console.print(table)


def _card(run: Run) -> str:
    """Return a run's description in Markdown, without the comment at its end."""
    return re.sub(r"<!--.*?-->", "", run.data.tags.get(DESCRIPTION_TAG, "This run has no report card.")).rstrip()


def _pictures(client: MlflowClient, run_id: str) -> list[dict[str, str]]:
    """Return a run's pictures, each with its PNG file in base64; of an evaluation's, those of the last step."""
    newest: dict[str, tuple[int, str]] = {}
    for path in _files(client, run_id, PICTURE_FOLDERS):
        if path.endswith(".png"):
            step = re.search(r"step-(\d+)/", path)
            at = (int(step[1]) if step else 0, path)
            key = re.sub(r"step-\d+/", "", path)
            newest[key] = max(newest.get(key, at), at)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _, path in newest.values():
            content = Path(client.download_artifacts(run_id, path, folder)).read_bytes()
            found.append({"name": path, "content": base64.b64encode(content).decode()})
    return found


def _files(client: MlflowClient, run_id: str, folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        for one in client.list_artifacts(run_id, folder):
            if one.is_dir:
                yield from _files(client, run_id, [one.path])
            else:
                yield one.path
