"""The verbs of a run: what can be logged, each call of which appends one record to the run's journal."""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking_callbacks import records
from tracking_callbacks.checkpoints import WaitingCheckpoints
from tracking_callbacks.datasets import describe_dataset, table_text
from tracking_callbacks.errors import InputError, InvalidNameError
from tracking_callbacks.names import SafeNames
from tracking_callbacks.session import MetricClock, RunJournal
from tracking_callbacks.settings import Settings
from tracking_callbacks.staging import size_of, snapshot
from tracking_callbacks.values import (
    MAX_PARAM_LENGTH,
    MAX_TAG_LENGTH,
    artifact_place,
    check_aliases,
    check_model_name,
    cut_text,
    entry_text,
    plain,
    safe_name,
    to_scalar,
    whole_step,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunVerbs"]

logger = logging.getLogger("tracking_callbacks")


class RunVerbs:
    """What is logged to a run, whatever becomes of it: the half of `run.Run` that only writes records.

    Args:
        settings: Of the tracker that has started the run.
        journal: Where the records go.
    """

    def __init__(self, settings: Settings, journal: RunJournal) -> None:
        self.settings = settings
        self.journal = journal
        self._metric_names, self._param_names, self._tag_names = SafeNames(), SafeNames(), SafeNames()
        self._lock = threading.RLock()
        self._clock = MetricClock()
        self._checkpoints = WaitingCheckpoints(settings.max_staged_bytes)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one point of each metric, stamped with the present time.

        Args:
            metrics: Names and values; a value is a number, or a tensor or array of one element. NaN is kept; MLflow
                stores the infinities as ±1.797e308.
            step: Training step, a signed 64-bit integer; None stands for 0, as in MLflow.

        Raises:
            InvalidNameError: A name is empty or not a text.
            MetricValueError: A value is not one number; none of this call's metrics is logged then.
        """
        names = self._metric_names.safe
        points = {
            names.get(key) or self._metric_names.add(key): value if type(value) is float else to_scalar(key, value)
            for key, value in metrics.items()
        }
        if type(step) is not int or not -(2**63) <= step < 2**63:
            step = whole_step(step)
        if points:
            with self._lock:  # in the order of their stamps
                self.journal.append(records.Metrics(self._clock.stamp(step, points), step, points))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; a text longer than 6 000 characters is cut, and kept whole in ``params/<name>.txt``.

        A param cannot be changed in MLflow: of two values the first stays, and the run gets the tag
        ``param_drift.<name>``.

        Raises:
            InvalidNameError: A name is empty or not a text.
        """
        texts: dict[str, str] = {}
        for key, value in params.items():
            name = self._param_names.safe.get(key) or self._param_names.add(key)
            text = entry_text(key, value)
            if len(text) > MAX_PARAM_LENGTH:
                self.log_text(text, f"params/{name}.txt")
                text = text[: MAX_PARAM_LENGTH - 1] + "…"
            texts[name] = text
        if texts:
            self.journal.append(records.Params(texts))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a tag set again takes the new value. A text longer than 8 000 characters is cut.

        Raises:
            InvalidNameError: A name is empty or not a text.
        """
        texts = {
            self._tag_names.safe.get(key) or self._tag_names.add(key): cut_text(entry_text(key, value), MAX_TAG_LENGTH)
            for key, value in tags.items()
        }
        if texts:
            self.journal.append(records.Tags(texts))

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Log a file as it is now: it may be changed or deleted right after the call.

        Args:
            path: A file, or a folder, which is logged under its own name.
            artifact_path: Folder within the run's artifacts, ``/``-separated; None for their root.

        Raises:
            InputError: There is nothing at `path`, or `artifact_path` leaves the run's artifacts.
        """
        source = Path(path)
        if not source.exists():
            raise InputError(f"log_artifact: expected a file or folder, there is nothing at {str(path)!r}")
        self._log_files(lambda target: snapshot(source, target), source.name or source.resolve().name, artifact_path)

    def log_artifacts(self, folder: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Log the content of a folder as it is now.

        Args:
            folder: The folder whose files and subfolders are logged.
            artifact_path: Folder within the run's artifacts that they go to; None for their root.

        Raises:
            InputError: `folder` is not a folder, or `artifact_path` leaves the run's artifacts.
        """
        source = Path(folder)
        if not source.is_dir():
            raise InputError(f"log_artifacts: expected a folder, got {str(folder)!r}")
        self._log_files(lambda target: snapshot(source, target), "", artifact_path)

    def log_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Log a training's checkpoint, a file or a folder, as it is now, under ``checkpoints/``.

        A store that is away, or slower than the training, must not fill the disk: where the checkpoints that wait for
        delivery would take more than the tracker's `max_staged_bytes`, the oldest of them are dropped. The report
        and the run's tag ``tracking_callbacks.dropped_checkpoints`` count them. The latest always stays.

        Args:
            path: The checkpoint; its name is kept.

        Raises:
            InputError: There is nothing at `path`.
        """
        source = Path(path)
        if not source.exists():
            raise InputError(f"log_checkpoint: expected a file or folder, there is nothing at {str(path)!r}")
        if self.journal.inert:  # a forked child must not drop what its parent has logged
            return
        size = size_of(source)
        if dropped := self._checkpoints.make_room(size, self.journal.root.path):
            self.journal.withdraw(dropped)
            logger.warning("too many checkpoints wait for delivery (max_staged_bytes): dropped the oldest %d", dropped)
        staged = self.journal.stage(
            source.name or source.resolve().name,
            lambda target: snapshot(source, target),
            lambda staged: records.Artifact(staged, "checkpoints", checkpoint=True),
        )
        if staged is not None:
            self._checkpoints.add(staged, size)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as the artifact `artifact_file`, for example ``"notes/readme.txt"``."""
        self._log_file(artifact_file, lambda target: target.write_text(text, encoding="utf-8", errors="replace"))

    def log_dict(self, obj: Mapping[str, Any] | list[Any], artifact_file: str) -> None:
        """Log a mapping or list as JSON, or as YAML where `artifact_file` ends in ``.yaml`` or ``.yml``.

        Objects that the format does not know are made plain, secrets are masked (see `values.plain`).
        """
        content = plain(obj)
        if artifact_file.endswith((".yaml", ".yml")):
            import yaml

            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        else:
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.log_text(text, artifact_file)

    def log_figure(self, fig: Figure, artifact_file: str) -> None:
        """Log a matplotlib figure as an image; the ending of `artifact_file` gives the format."""
        self._log_file(artifact_file, lambda target: fig.savefig(target, dpi=200, bbox_inches="tight"))

    def log_table(self, table: object, artifact_file: str) -> None:
        """Log a table as a JSON file that MLflow's UI shows as one and ``mlflow.load_table`` reads.

        Args:
            table: Columns by name, rows by column name, or a pandas frame (without its index).
            artifact_file: Its place, which ends in ``.json``. A table that is there already is replaced.

        Raises:
            InputError: `table` is something else, or the ending is another one.
        """
        if not str(artifact_file).endswith(".json"):
            raise InputError(f"log_table: expected a place that ends in .json, got {artifact_file!r}")
        text = table_text(table)
        self._log_file(artifact_file, lambda target: target.write_text(text, encoding="utf-8"), table=True)

    def log_dataset(
        self,
        name: str,
        *,
        dataset: object = None,
        digest: str | None = None,
        schema: Mapping[str, Any] | None = None,
        size: int | Mapping[str, int] | None = None,
        source: str = "",
        source_type: str | None = None,
        context: str | None = None,
    ) -> None:
        """Record a dataset as an input of the run.

        Args:
            name: Name of the dataset.
            dataset: The dataset itself, of which schema, size, digest and source are read: a ``datasets.Dataset``, a
                pandas frame, a list of rows, an array, a dataset of torch. The other arguments go before it.
            digest: Fingerprint of its content, at most 36 characters; by default one of name, schema, size and source.
            schema: Names and types of its columns, in MLflow's words (``long``, ``string``, …).
            size: Number of rows, or a mapping such as ``{"num_rows": 3000}``.
            source: Where it comes from: a path or URI; credentials in it are masked.
            source_type: MLflow's word for the kind of source: ``local``, ``http``, ``hugging_face``, ``code``, …
            context: What the run uses it for: ``training``, ``evaluation``, …

        Raises:
            InvalidNameError: The name is empty.
            InputError: The digest is too long.
        """
        self.journal.append(
            describe_dataset(
                name,
                dataset=dataset,
                digest=digest,
                schema=schema,
                size=size,
                source=source,
                source_type=source_type,
                context=context,
            )
        )

    def log_model(
        self,
        mlmodel_folder: str | os.PathLike[str],
        name: str = "model",
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        step: int | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a model that has been saved in an MLflow flavor, and register it.

        Args:
            mlmodel_folder: A folder with an ``MLmodel`` file; it may be deleted right after the call.
            name: Name of the logged model within the run.
            registered_model_name: Name in the model registry; None registers nothing.
            aliases: Aliases that the new version takes over.
            step: Training step of the model; None stands for the run's last.
            tags: Tags of the logged model and of the registered version.

        Raises:
            InputError: The folder holds no ``MLmodel`` file, or there are aliases without a registered name.
            ConfigError: An alias is one that MLflow forbids.
        """
        source = Path(mlmodel_folder)
        if not (source / "MLmodel").is_file():
            raise InputError(f"log_model: expected a folder with an MLmodel file, got {str(mlmodel_folder)!r}")
        checked = check_aliases(aliases)
        check_model_name(name, "name")
        if registered_model_name is not None:
            check_model_name(registered_model_name, "registered_model_name")
        elif checked:
            raise InputError(f"log_model: aliases {checked!r} need a registered_model_name")
        model_tags = {safe_name(key): entry_text(key, value) for key, value in (tags or {}).items()}

        def record(staged: str) -> records.Record:
            return records.Model(
                timestamp=records.now_ms(),
                record_key=uuid.uuid4().hex,
                staged=staged,
                name=name,
                registered_model_name=registered_model_name,
                aliases=checked,
                step=step,
                tags=model_tags,
            )

        self.journal.stage("model", lambda target: snapshot(source, target), record)

    def draw(
        self, kind: records.DrawingKind, artifact_path: str = "figures", data: Path | str | None = None, **captions: str
    ) -> None:
        """Have a picture drawn of the run; delivery does it, so that it costs the training nothing.

        Args:
            kind: ``learning_curves``, of the points logged so far under ``train/``, ``eval/`` and ``test/``;
                ``confusion_matrix``, ``episodes`` or ``equity``, of `data`.
            artifact_path: Folder within the run's artifacts that the picture goes to.
            data: A file as the callbacks log it (``confusion_matrix.json``, ``episodes.csv``, ``equity_curves.csv``),
                or the text of one.
            captions: What is to be said in the picture: ``step``, ``note``, ``label``, ``source``,
                ``periods_per_year``.

        Raises:
            InputError: `artifact_path` leaves the run's artifacts.
        """
        if not self.settings.log_figures:
            return
        place = str(artifact_place(artifact_path, "artifact_path"))
        if data is None:
            self.journal.append(records.Drawing(kind, place, captions=captions))
            return

        def write(target: Path) -> None:
            if isinstance(data, str):
                target.write_text(data, encoding="utf-8")
            else:
                snapshot(data, target)

        self.journal.stage("data", write, lambda staged: records.Drawing(kind, place, staged, captions))

    def _log_file(self, artifact_file: str, write: Callable[[Path], object], *, table: bool = False) -> None:
        if not isinstance(artifact_file, str) or not artifact_file.strip("/ "):
            raise InvalidNameError(
                f"artifact_file: expected a path such as 'a/b.txt', got {artifact_file!r}", name=artifact_file
            )
        place = artifact_place(artifact_file, "artifact_file")
        parent = str(place.parent)
        self._log_files(write, place.name, None if parent == "." else parent, table=table)

    def _log_files(
        self, write: Callable[[Path], object], name: str, artifact_path: str | None, *, table: bool = False
    ) -> None:
        place = str(artifact_place(artifact_path, "artifact_path")) if artifact_path else None
        self.journal.stage(name, write, lambda staged: records.Artifact(staged, place, table))
