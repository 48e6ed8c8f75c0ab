"""A run as its user sees it: what can be logged to it, and its life from start to end."""

from __future__ import annotations

import atexit
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, get_args

from tracking_callbacks._contents.datasets import describe_dataset, table_text
from tracking_callbacks._contents.documents import document_text
from tracking_callbacks._contents.figures import figure_writer
from tracking_callbacks._contents.recorder import ContentsRecorder
from tracking_callbacks._journal import records
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._runs import exits
from tracking_callbacks._runs.checkpoint_room import CheckpointRoom
from tracking_callbacks._runs.models import RunModels, saved_by
from tracking_callbacks._values.conversion import (
    MAX_PARAM_LENGTH,
    MAX_TAG_LENGTH,
    cut_text,
    entry_text,
    to_scalar,
    to_step,
)
from tracking_callbacks._values.names import SafeNames, artifact_place
from tracking_callbacks._values.promotion import Promotion
from tracking_callbacks._values.secrets import mask_text
from tracking_callbacks._values.store_uri import run_link
from tracking_callbacks._writing.flushing import outlast_supervisor, wait_for_delivery
from tracking_callbacks._writing.launch import DeliveryLauncher
from tracking_callbacks._writing.report import DeliveryReport
from tracking_callbacks._writing.session import RunJournal
from tracking_callbacks._writing.silent import SilentJournal
from tracking_callbacks._writing.snapshots import snapshot
from tracking_callbacks.errors import InputError, InvalidNameError
from tracking_callbacks.settings import Settings

__all__ = ["Part", "Run", "active_runs"]

_STATUSES = ("FINISHED", "FAILED", "KILLED")
_RUN_ID_SECONDS = 5.0

# The fields of `Recording` that callbacks record something for.
Part = Literal["config", "environment", "reports", "datasets", "sample_rows", "importance", "models"]

active_runs: ContextVar[tuple[Run, ...]] = ContextVar("tracking_callbacks_active_runs", default=())


class Run:
    """A run to log to; made by `MLflowTracker.start_run`, usable as a context manager.

    Every verb appends to the journal and returns within microseconds; what it accepted survives the death of this
    process. No verb raises for a tracking fault; wrong input raises an `InputError` that names it.

    Attributes:
        run_key: The run's identity on this side, known before the server has given it a run id.
        began: When this object was made, in milliseconds since the epoch.
        settings: Those of the tracker that started the run.
        journal: Where the records go.
        joined: Another program started the run and will end it.
        ended: `end` was called; more can still be logged, the status stays.
        status_at_exit: The run's status if it is still open when the interpreter exits without an exception.
    """

    def __init__(
        self,
        settings: Settings,
        root: JournalRoot,
        launcher: DeliveryLauncher | None,
        *,
        opened: records.SessionOpened,
    ) -> None:
        self.run_key = opened.run_key
        self.began = opened.timestamp
        self.settings = settings
        self.journal: RunJournal
        if settings.disabled:
            self.journal = SilentJournal(settings, opened)
        else:
            self.journal = RunJournal(settings, root, launcher, opened, on_open=lambda: exits.register(self))
        self.joined = opened.intent == "join"
        self.ended = False
        self.status_at_exit: records.Status = "KILLED"
        self._metric_names, self._param_names, self._tag_names = SafeNames(), SafeNames(), SafeNames()
        self._checkpoints = CheckpointRoom(self.journal, settings.delivery.max_checkpoint_bytes)
        self._models = RunModels(self.journal, settings, self._checkpoints)
        self._lock = threading.RLock()
        self._modules = exits.modules_on_stack()
        self._contents = ContentsRecorder(settings, self.journal, opened)
        self._postponed: tuple[Callable[[], object], int] | None = None  # with the process that it is for
        self._status: records.Status | None = None

    # -- what can be logged ------------------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one point of each metric, stamped with the present time.

        Args:
            metrics: Names and values; a value is a number, or a tensor or array of one element. NaN is kept; MLflow
                stores the infinities as ±1.797e308.
            step: Training step, a signed 64-bit integer; None means 0, as in MLflow.

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
            step = to_step(step)
        if points:
            self.journal.append_metrics(step, points)

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
        """Log a checkpoint, a file or a folder, as it is now, under ``checkpoints/``.

        Its large files are held by hard links, so the call takes no time. The checkpoint may be deleted or replaced. If
        the same files are written into before delivery has copied them, the checkpoint is refused, and the report and
        ``rejected.jsonl`` say so; from then on a checkpoint at the same path is copied at once.

        A store that is away, or slower than training, must not fill the disk: where the checkpoints that wait for
        delivery would take more than the tracker's `max_checkpoint_bytes`, the oldest of them are dropped. The report
        and the run's tag ``tracking_callbacks.dropped_checkpoints`` count them. The latest always stays.

        Args:
            path: The checkpoint; its name is kept.

        Raises:
            InputError: There is nothing at `path`.
        """
        source = Path(path)
        if not source.exists():
            raise InputError(f"log_checkpoint: expected a file or folder, there is nothing at {str(path)!r}")
        self._checkpoints.log(source)

    def log_file(self, artifact_file: str, write: Callable[[Path], object]) -> None:
        """Log the artifact `artifact_file`, which `write` writes to the path that it is given."""
        self._log_file(artifact_file, write)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as the artifact `artifact_file`, for example ``"notes/readme.txt"``."""
        self._log_file(artifact_file, lambda target: target.write_text(text, encoding="utf-8", errors="replace"))

    def log_dict(self, obj: Mapping[str, Any] | list[Any], artifact_file: str) -> None:
        """Log a mapping or list as JSON, or as YAML where `artifact_file` ends in ``.yaml`` or ``.yml``.

        Objects that the format does not know are made plain, secrets are masked (see `to_jsonable`).
        """
        self.log_text(document_text(obj, artifact_file), artifact_file)

    def log_figure(self, fig: object, artifact_file: str) -> None:
        """Log a figure; the ending of `artifact_file` gives the format.

        Args:
            fig: A figure of matplotlib (or a grid of seaborn), which becomes an image, or of plotly, which becomes a
                page that loads plotly's script from the web.
            artifact_file: Its place, which ends in ``.png``, ``.svg``, ``.pdf``, … or, for plotly, in ``.html``.

        Raises:
            InputError: `fig` is something else, or the ending does not fit it.
        """
        self._log_file(artifact_file, figure_writer(fig, artifact_file))

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
    ) -> str:
        """Record a dataset as an input of the run.

        What is used for ``evaluation`` counts as the data behind the metrics ``eval/…``, see `evaluated_on`.

        Args:
            name: Name of the dataset.
            dataset: The dataset itself, of which schema, size, digest and source are read: a ``datasets.Dataset``, a
                pandas frame, a list of rows, an array, a dataset of torch. The other arguments take precedence over it.
            digest: Fingerprint of its content, at most 36 characters; by default one of name, schema, size and source.
            schema: Names and types of its columns, in MLflow's words (``long``, ``string``, …).
            size: Number of rows, or a mapping such as ``{"num_rows": 3000}``.
            source: Where it comes from: a path or URI; credentials in it are masked.
            source_type: MLflow's word for the kind of source: ``local``, ``http``, ``hugging_face``, ``code``, …
            context: What the run uses it for: ``training``, ``evaluation``, …

        Returns:
            The digest.

        Raises:
            InvalidNameError: The name is empty.
            InputError: The digest is too long.
        """
        described = describe_dataset(
            name,
            dataset=dataset,
            digest=digest,
            schema=schema,
            size=size,
            source=source,
            source_type=source_type,
            context=context,
        )
        self.journal.append(described)
        if context == "evaluation":
            self.evaluated_on("eval", described.digest, described.name)
        return described.digest

    def evaluated_on(self, role: str, digest: str, name: str = "") -> None:
        """Note which data the metrics of an evaluation are measured on.

        Args:
            role: What their names begin with: ``"eval"`` for ``eval/f1``, ``"eval_news"`` for ``eval/news/f1``.
            digest: The same text for the same data.
            name: Name of the dataset; empty if it is none.
        """
        self._models.evaluated_on(role, name, digest)

    def log_model(
        self,
        mlmodel_folder: str | os.PathLike[str],
        name: str = "model",
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        step: int | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        promote: Promotion | None = None,
    ) -> None:
        """Log a model that has been saved in an MLflow flavor, and register it.

        Args:
            mlmodel_folder: A folder with an ``MLmodel`` file; it may be deleted right after the call.
            name: Name of the logged model within the run.
            registered_model_name: Name in the model registry; None registers nothing.
            aliases: Aliases that the new version takes over.
            step: Training step of the model; None means the run's last.
            tags: Tags of the logged model and of the registered version.
            promote: Let an alias move to the new version if it is better than the one that holds it; None means the
                tracker's `promote`. The data of the comparison is that of `log_dataset`.

        Raises:
            InputError: The folder holds no ``MLmodel`` file, or there are aliases or `promote` without a registered
                name.
            ConfigError: A name or an alias is one that MLflow forbids.
        """
        source = Path(mlmodel_folder)
        if not (source / "MLmodel").is_file():
            raise InputError(f"log_model: expected a folder with an MLmodel file, got {str(mlmodel_folder)!r}")
        plan = self._models.plan(name, registered_model_name, aliases, step, tags, promote)
        self._models.stage(lambda target: snapshot(source, target), plan)

    def save_model(
        self,
        save: Callable[[Path], object],
        name: str = "model",
        registered_model_name: str | None = None,
        aliases: Iterable[str] = (),
        step: int | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        promote: Promotion | None = None,
        checkpoint: bool = False,
    ) -> str | None:
        """Log a model that `save` saves straight into the journal's folder, and register it.

        Args:
            save: Called with the path of a folder that does not exist; saves the model there in an MLflow flavor.
            name: As the other arguments, see `log_model`.
            registered_model_name: See `log_model`.
            aliases: See `log_model`.
            step: See `log_model`.
            tags: See `log_model`.
            promote: See `log_model`.
            checkpoint: It is one of many: where the store is away, the oldest are dropped to make room, as
                `log_checkpoint` does. It cannot be registered.

        Returns:
            The key of the model for `delete_model`; None if it could not be kept.

        Raises:
            TrackingError: `save` raised an `OSError` or left no ``MLmodel`` file. Its other exceptions are passed on.
            InputError: As in `log_model`, and so is `ConfigError`.
        """
        plan = self._models.plan(name, registered_model_name, aliases, step, tags, promote, checkpoint=checkpoint)
        return self._models.stage(saved_by(save), plan)

    def delete_model(self, key: str) -> None:
        """Delete a model that `save_model` has logged as a checkpoint, also from the store.

        Args:
            key: What `save_model` returned.
        """
        self._models.delete(key)

    def compare_again(self, metrics: Iterable[str]) -> None:
        """Compare the last registered version once more, because an evaluation after it has brought new values.

        Args:
            metrics: Names of the metrics that were logged. Without the one that `promote` names, nothing is compared.
        """
        self._models.compare_again(metrics)

    def wait_for_registration(self) -> None:
        """Wait until the models that were logged since the last call and name a registered model are registered.

        The wait ends after `Delivery.wait_at_end` seconds, and at once where the store does not answer or nothing is
        delivered. One line on stderr says what came of it.
        """
        self._models.wait(self._described)

    def record(self, part: Part, write: Callable[[], object]) -> None:
        """Call `write`, which logs to this run, unless the tracker's `Recording` switches that part off.

        Args:
            part: The field of `Recording` that the content belongs to.
            write: Logs it.
        """
        if getattr(self.settings.record, part):
            write()

    def describe(self, status: records.Status | None = None) -> None:
        """Have delivery write what is known so far into the run's description, unless the user has written one.

        Args:
            status: How the run ends; None while it goes on.
        """
        if self.settings.record.description:
            self.journal.append(records.Describe(records.now_ms(), status))

    def draw(
        self, kind: records.DrawingKind, artifact_path: str = "figures", data: Path | str | None = None, **captions: str
    ) -> None:
        """Have the delivery process draw a picture of the run, so that it costs training nothing.

        Args:
            kind: ``learning_curves``, of the points logged so far under ``train/``, ``eval/`` and ``test/``;
                ``confusion_matrix``, ``episodes`` or ``equity``, of `data`.
            artifact_path: Folder within the run's artifacts that the picture goes to.
            data: A file as the callbacks log it (``confusion_matrix.json``, ``episodes.csv``, ``equity_curves.csv``),
                or the text of one.
            captions: What is to be said in the picture: ``step``, ``note``, ``label``, ``source``,
                ``periods_per_year``.

        Raises:
            InputError: There is no such `kind`, it needs `data`, or `artifact_path` leaves the run's artifacts.
        """
        if kind not in (kinds := get_args(records.DrawingKind)):
            raise InputError(f"kind: expected one of {', '.join(kinds)}, got {kind!r}")
        if data is None and kind != "learning_curves":
            raise InputError(f"data: expected what {kind} is drawn from, got None")
        if not self.settings.record.pictures:
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

    # -- its life ----------------------------------------------------------------------------------------------------

    def end(self, status: records.Status = "FINISHED") -> None:
        """End the run; a second call does nothing. Delivery goes on in the background, `flush` waits for it.

        Where all processes of a job end together (Ray's workers, Slurm, a pod, …), delivery cannot go on, and this
        call waits for it, `Delivery.wait_at_end` seconds at most.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``. A run that was only joined keeps its own status.

        Raises:
            InputError: `status` is another word.
        """
        if status not in _STATUSES:
            raise InputError(f"status: expected one of {', '.join(_STATUSES)}, got {status!r}")
        with self._lock:
            if self.ended:
                return
            self._contents.end()
            self.ended = True
            self._status = None if self.joined else status
            if not self.joined:
                self.describe(status)
            self.journal.seal(None if self.joined else status)
        self.outlast_supervisor()

    def outlast_supervisor(self) -> None:
        """Wait for delivery where something ends this process together with its delivery process."""
        outlast_supervisor(self.journal, self.settings.delivery.wait_at_end)

    def fail(self, error: BaseException) -> None:
        """End the run because of `error`: its traceback becomes ``error.txt``, its last line a tag.

        The status is FAILED after an `Exception`, and KILLED after any other: an interruption, or ``sys.exit``. A trial
        that a search has pruned is KILLED too, without an error.
        """
        if not self.ended and not self.joined:
            if exits.is_pruned(error):
                self.set_tags({records.PRUNED_TAG: "true"})
            else:
                self.log_error(error)
                if not exits.is_printed(error):
                    self._contents.add_error(error)
        self.end("FAILED" if isinstance(error, Exception) and not exits.is_pruned(error) else "KILLED")

    def log_error(self, error: BaseException) -> None:
        """Log a traceback as ``error.txt``, and its last line as a tag."""
        lines = traceback.format_exception(error)
        self.log_text(mask_text("".join(lines)), "error.txt")
        self.set_tags({records.ERROR_TAG: mask_text(lines[-1].strip())})

    def reopen(self, *, at_step: int | None = None) -> None:
        """Continue the run after its end: its status is RUNNING again until the next `end`.

        Args:
            at_step: Training step that the run continues from, see `MLflowTracker.resume_run`.
        """
        with self._lock:
            if self.ended:
                self.ended = False
                self._modules = exits.modules_on_stack()
                self.journal.reopen("join" if self.joined else "own", at_step=at_step)
                self._contents.reopen()

    def end_interrupted(self, otherwise: records.Status = "KILLED") -> None:
        """End a run that is still open: with the exception that ends the program, if there is one.

        Args:
            otherwise: The status where no exception ends the program.
        """
        error = exits.uncaught_error(self._modules)
        if error is None:
            self.end(otherwise)
        else:
            self.fail(error)

    def postpone(self, write: Callable[[], object] | None) -> None:
        """Have `write` log to this run at its next `flush` or at the end of the program; None withdraws it."""
        atexit.unregister(self.write_postponed)
        self._postponed = None if write is None else (write, os.getpid())
        if write is not None:
            # It may need temporary files, which the exit functions that were registered before this one delete.
            atexit.register(self.write_postponed)

    def write_postponed(self) -> None:
        """Log what was postponed, in the process that did so."""
        postponed, self._postponed = self._postponed, None
        atexit.unregister(self.write_postponed)
        if postponed is not None and postponed[1] == os.getpid():
            postponed[0]()

    def close(self) -> None:
        """Let go of the journal at exit: an open run ends as interrupted, what was added to an ended one is sealed."""
        if self.ended:
            self.journal.seal(None)
        else:
            self.end_interrupted(otherwise=self.status_at_exit)

    def flush(self, timeout: float | None = None) -> DeliveryReport:
        """Wait until the store has everything logged so far, or `timeout` seconds have passed.

        Args:
            timeout: Seconds; None means the tracker's ``flush_timeout``. The wait shows its progress on stderr
                after two seconds. With ``offline=True`` nothing is waited for.
        """
        self.write_postponed()
        self._contents.settle()
        if self.ended:
            self.journal.seal(None)  # what was added after the end
        if self.journal.offline:
            return self.report()
        return wait_for_delivery([self.journal], self.settings.delivery.flush_timeout if timeout is None else timeout)[
            0
        ]

    def report(self) -> DeliveryReport:
        """Return what delivery has done so far, without waiting."""
        return self.journal.report()

    @property
    def run_id(self) -> str | None:
        """The server's id of the run; waits a few seconds for it, None when offline or not yet known."""
        return self.journal.wait_for_run_id(_RUN_ID_SECONDS)

    @property
    def parent_reference(self) -> dict[str, str | None]:
        """How a child run names this one."""
        return {"parent_key": None if self.joined else self.run_key, "parent_id": self.journal.known_run_id()}

    @property
    def url(self) -> str | None:
        """Link to the run in the MLflow UI, where the store is a server that has one."""
        uri = self.settings.masked_uri
        if not uri.startswith(("http://", "https://")):
            return None
        run_id = self.run_id  # waits for it
        return run_link(uri, self.journal.state().experiment_id, run_id) or None

    def __enter__(self) -> Run:
        active_runs.set((*active_runs.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        active_runs.set(tuple(run for run in active_runs.get() if run is not self))
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.end("FINISHED")
        else:
            self.fail(error)

    def __copy__(self) -> Run:
        return self

    def __deepcopy__(self, memo: object) -> Run:
        return self  # a copied model or environment that names the run names the same one

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Run cannot be pickled: pass run.run_id, and log to MLflowTracker().join_run(run_id) there")

    def __repr__(self) -> str:
        return f"<Run {self.run_key} at {self.settings.masked_uri}{', ended' if self.ended else ''}>"

    def _described(self) -> str:
        status = f" ({self._status})" if self._status else ""
        return f"run {self.url or self.run_id}{status}"

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
