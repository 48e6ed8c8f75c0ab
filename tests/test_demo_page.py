"""The page that ``make demo`` ends with, made from runs of a real store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from rich.console import Console

from demo_page import Check, Trained, print_page, write_page

CARD = "**agent**, <b>trained</b>\n\n| metric | value |\n| --- | --- |\n| f1 | 0.5 |\n\n[curves](#/x)\n\n<!-- ours -->"


def test_the_page_shows_checks_report_cards_and_the_last_pictures(server, tmp_path: Path) -> None:
    client = MlflowClient(server.uri, server.uri)
    run = client.create_run("0", run_name="a <run>")
    run_id = run.info.run_id
    client.set_tag(run_id, "mlflow.note.content", CARD)
    for place in ("figures/curves.png", "evaluation/eval/step-9/matrix.png", "evaluation/eval/step-10/matrix.png"):
        client.log_image(run_id, np.zeros((2, 2, 3), np.uint8), place)
    client.create_registered_model("of the page")
    version = client.create_model_version("of the page", run.info.artifact_uri, run_id)
    trained = [Trained("An agent", version, [Check("8 actions, equal", True), Check("f1, DIFFERENT", False)])]
    console = Console(file=io.StringIO(), width=120)
    page = tmp_path / "new" / "demo.html"

    write_page(client, server.uri, trained, page)
    print_page(client, trained, console)

    html, text = page.read_text(encoding="utf-8"), console.file.getvalue()
    assert '<div class="passed">8 actions, equal</div>' in html
    assert '<div class="failed">f1, DIFFERENT</div>' in html
    assert "a &lt;run&gt;" in html
    assert "<strong>agent</strong>, &lt;b&gt;trained" in html
    assert "<td>0.5</td>" in html
    assert "ours" not in html
    assert f'<base href="{server.uri}/">' in html
    assert f'href="#/experiments/0/runs/{run_id}"' in html
    assert html.count("data:image/png;base64,") == 2
    assert "step-10/matrix.png" in html
    assert "step-9/" not in html
    assert "8 actions, equal" in text
    assert "of the page v1" in text
