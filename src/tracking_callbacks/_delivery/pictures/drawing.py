"""Draws the pictures of a run, in the heavy process, so that neither training nor delivery waits for matplotlib."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracking_callbacks._delivery import pictures as figures
from tracking_callbacks._delivery.pictures.series import envelope
from tracking_callbacks._delivery.stores.store import Store
from tracking_callbacks._journal.frames import read_records
from tracking_callbacks._journal.layout import RunFolder
from tracking_callbacks._journal.records import Drawing, Metrics, SessionOpened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "points_of"]

_NOT_DRAWN = ("system/", "episode/", "rollout/", "time/")
_OF_ONE_CLASS = "/class/"
_MOST_POINTS = 100_000  # of one metric; a picture is some thousand pixels wide


def draw(record: Drawing, snapshot: Path | None, folder: RunFolder, store: Store, run_id: str) -> list[Path]:
    """Draw what `record` asks for into the run's folder, and return the files.

    Args:
        record: What to draw.
        snapshot: The file that the picture is drawn from. None means that it is drawn from the run's points.
        folder: The run's folder.
        store: The store, which has the points of earlier sessions.
        run_id: The run.

    Raises:
        Exception: It cannot be drawn.
        DeliveryError: The store did not give the points of earlier sessions this time.
    """
    points = points_of(folder, store, run_id) if record.kind == "learning_curves" else {}
    pictures = {name: figures.png(figure) for name, figure in _drawn(record, snapshot, points).items() if figure}
    if record.kind == "tear_sheet" and snapshot is not None:
        pictures["tear_sheet.html"] = figures.tear_sheet(json.loads(snapshot.read_text(encoding="utf-8"))).encode()
    folder.drawn.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder.drawn / name).write_bytes(picture)
    return [folder.drawn / name for name in pictures]


def _drawn(record: Drawing, snapshot: Path | None, points: dict[str, Curve]) -> dict[str, Figure | None]:
    captions = record.captions
    content = snapshot.read_text(encoding="utf-8") if snapshot else ""
    match record.kind:
        case "learning_curves":
            pairs = {name: list(curve.pairs()) for name, curve in points.items()}
            return {"learning_curves.png": figures.learning_curves(pairs, step=captions.get("step", "training step"))}
        case "confusion_matrix":
            counted = json.loads(content)
            figure = figures.confusion_matrix(counted["labels"], counted["matrix"], note=captions.get("note", ""))
            return {"confusion_matrix.png": figure}
        case "classifier_curves":
            figure = figures.classifier_curves(json.loads(content), note=captions.get("note", ""))
            return {"roc_precision_recall_calibration.png": figure}
        case "regression":
            return {"regression.png": figures.regression_errors(json.loads(content), note=captions.get("note", ""))}
        case "scores":
            return {"scores.png": figures.score_bars(json.loads(content), note=captions.get("note", ""))}
        case "episodes":
            table = figures.read_columns(content.splitlines())
            steps = table["timestep"]
            periods = captions.get("periods_per_year")
            return {
                "episodes.png": figures.episode_curves(steps, table["reward"], table["length"]),
                "sharpe_ratio.png": figures.sharpe_curve(
                    steps,
                    table["sharpe_ratio"],
                    periods_per_year=float(periods) if periods else None,
                    source=captions.get("source", ""),
                ),
            }
        case "tear_sheet":
            return {f"{name}.png": figure for name, figure in figures.sheet_figures(json.loads(content)).items()}
        case "importance":
            ranking = {name: float(value) for name, value in list(csv.reader(content.splitlines()))[1:]}
            figure = figures.importance_bars(ranking, note=captions.get("note", ""))
            return {"feature_importance.png": figure}
        case "study":
            return {f"{name}.png": figure for name, figure in figures.study_figures(json.loads(content)).items()}
        case "equity":
            values = figures.read_columns(content.splitlines())
            label = captions.get("label", "episode")
            rows = {f"{label} {number:.0f}": values["episode"] == number for number in np.unique(values["episode"])}
            curves = {name: values["equity"][own] for name, own in rows.items()}
            places = {name: values["step"][own] for name, own in rows.items()}
            return {"equity_curves.png": figures.equity_curves(curves, places)}


class Curve:
    """The points of one metric, thinned if there are more than any picture could show."""

    def __init__(self) -> None:
        self._steps, self._values = array("d"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a point; points must be added in the order of logging."""
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) > 2 * _MOST_POINTS:
            thinned = envelope(np.array(self._steps), np.array(self._values), _MOST_POINTS)
            self._steps, self._values = (array("d", series.tobytes()) for series in thinned)

    def pairs(self) -> Iterator[tuple[int, float]]:
        """Yield the step and value of each point."""
        for step, value in zip(self._steps, self._values, strict=True):
            yield int(step), value


def points_of(folder: RunFolder, store: Store, run_id: str) -> dict[str, Curve]:
    """Return the run's points: those that earlier sessions sent to the store, followed by those in its journals."""
    curves: dict[str, Curve] = {}
    for journal in folder.journals():
        for record, _ in read_records(journal):
            if isinstance(record, SessionOpened) and record.resumed and not curves:
                curves = _stored(store, run_id, before=record.timestamp)
            elif isinstance(record, Metrics):
                for name, value in record.metrics.items():
                    if not name.startswith(_NOT_DRAWN) and _OF_ONE_CLASS not in name:
                        curves.setdefault(name, Curve()).add(record.step, value)
    return curves


def _stored(store: Store, run_id: str, *, before: int) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for name in {point.key for point in store.run(run_id).metrics}:
        if not name.startswith(_NOT_DRAWN) and _OF_ONE_CLASS not in name:
            for point in store.history(run_id, name):
                if point.timestamp < before:
                    curves.setdefault(name, Curve()).add(point.step, point.value)
    return curves
