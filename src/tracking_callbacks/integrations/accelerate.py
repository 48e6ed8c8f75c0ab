"""Tracking for loops that ``accelerate`` runs.

import tracking_callbacks.integrations.accelerate

accelerator = Accelerator(log_with="tracking_callbacks")
accelerator.init_trackers("sentiment", config={"learning_rate": 1e-4})
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import accelerate
import numpy as np
from accelerate.tracking import GeneralTracker, on_main_process

from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.description import Description, framework_tags, log_description
from tracking_callbacks._callbacks.media import save_image
from tracking_callbacks._runs.run import Run
from tracking_callbacks._runs.tracker import MLflowTracker
from tracking_callbacks._values.conversion import flatten, to_scalar
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import MetricValueError, TrackingError

__all__ = ["AccelerateTracker"]

Method = TypeVar("Method", bound=Callable[..., Any])


def _in_main_process(method: Method) -> Method:
    """Call a method in the main process alone, and keep its faults away from the loop."""
    return cast(Method, on_main_process(never_in_the_way(method)))


class AccelerateTracker(GeneralTracker):  # type: ignore[misc]
    """Tracks a loop of ``accelerate``, from the main process alone.

    ``Accelerator(log_with="tracking_callbacks")`` makes one, after this module has been imported;
    ``Accelerator(log_with=AccelerateTracker(…))`` takes one with settings. ``accelerator.end_training()`` ends the run:
    FINISHED, or FAILED while an exception is handled. A run whose loop never came to that is FAILED after an exception,
    else KILLED. ``accelerator.get_tracker("tracking_callbacks", unwrap=True)`` returns the `Run`, for artifacts and
    models.

    Args:
        project_name: The experiment; `init_trackers` hands it on. ``MLFLOW_EXPERIMENT_NAME`` takes precedence, and so
            does a `tracker` that is given.
        tracker: Where runs go; None means ``MLflowTracker(experiment_name=project_name)``.
        run_name: Name of the run; None means that MLflow makes one up.
        tags: Tags of the run.
    """

    name = "tracking_callbacks"
    requires_logging_directory = False

    def __init__(
        self,
        project_name: str | None = None,
        tracker: MLflowTracker | None = None,
        *,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._callback_run = CallbackRun(
            tracker or MLflowTracker(experiment_name=project_name),
            run_name=run_name,
            tags=tags,
            framework=framework_tags("accelerate", accelerate.__version__),
        )
        self._logged = 0

    @property
    def tracker(self) -> Run | None:
        """The run; None before `Accelerator.init_trackers`, and in all processes but the main one."""
        return self._callback_run.run

    @_in_main_process
    def start(self) -> None:
        """Start the run, or join the one that the program has started."""
        self._callback_run.begin_training()

    @_in_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the configuration: flat params, and the whole of it as ``config/config.json``."""
        log_description(self._run(), Description(flatten(values), {"config.json": values}))

    @_in_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Log numbers as metrics and everything else as tags.

        Args:
            values: Names and values.
            step: Training step; None means the number of calls so far that gave none.
        """
        if step is None:
            step, self._logged = self._logged, self._logged + 1
        metrics: dict[str, float] = {}
        texts: dict[str, Any] = {}
        for name, value in values.items():
            try:
                metrics[name] = to_scalar(name, value)
            except MetricValueError:
                texts[name] = value
        self._run().log_metrics(metrics, step)
        self._run().set_tags(texts)

    @_in_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Log images as ``images/<name>/<step>.png``.

        Args:
            values: By name, an image or a list of images of one size, which are put next to each other: arrays of
                shape (height, width) or (height, width, channels), or PIL images.
            step: Training step.
        """
        for name, given in values.items():
            images = np.stack([np.asarray(image) for image in (given if isinstance(given, (list, tuple)) else [given])])
            save = functools.partial(save_image, images, "NHW" if images.ndim == 3 else "NHWC")
            self._run().log_file(f"images/{name}/{step or 0:09d}.png", save)

    @_in_main_process
    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **_: Any,
    ) -> None:
        """Log a table as ``tables/<name>/<step>.json``, which MLflow's UI shows as one.

        Args:
            table_name: Its name.
            columns: Names of the columns of `data`.
            data: Rows.
            dataframe: A pandas frame in place of the two.
            step: Training step.
        """
        names, rows = columns or (), data or ()
        table = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        place = f"tables/{table_name}/{step or 0:09d}.json"
        self._run().log_table(table if dataframe is None else dataframe, place)

    @_in_main_process
    def finish(self) -> None:
        """End the run."""
        self._callback_run.end_training(error=sys.exception())

    def _run(self) -> Run:
        if self.tracker is None:
            raise TrackingError("log: expected a run, but Accelerator.init_trackers has not been called")
        return self.tracker


with contextlib.suppress(ImportError):  # accelerate before it took trackers by name
    from accelerate.tracking import register_tracker_class

    register_tracker_class(AccelerateTracker)
