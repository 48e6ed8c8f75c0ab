"""SB3's logger as a source of metrics: everything that it dumps, and the updates that it never dumps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.logger import Figure, HParam, Image, KVWriter, Logger, Video

from tracking_callbacks._callbacks.media import save_image, save_video
from tracking_callbacks._episodes.point_budget import StepBudget
from tracking_callbacks._runs.run import Run
from tracking_callbacks._values.conversion import to_scalar
from tracking_callbacks._values.names import safe_name
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.errors import InputError, InvalidNameError, MetricValueError

__all__ = ["RunWriter"]

logger = logging.getLogger(__name__)

_UPDATES = "train/"
_UPDATE_COUNT = "train/n_updates"
# What SB3 records by itself at every rollout, with all of its updates (SB3 2.9.2).
_OWN = {"rollout/success_rate", "rollout/exploration_rate"} | {
    f"time/{name}" for name in ("fps", "iterations", "episodes", "time_elapsed", "total_timesteps")
}
# Means of the last hundred episodes; the recorder logs the statistics of the episodes since the last point.
_TWICE = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}


class SilentWriter(KVWriter):
    """What a `RunWriter` becomes in a copy of its logger, for example that of an opponent in self-play."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class RunWriter(KVWriter):
    """One more output of SB3's logger, in addition to the user's own outputs.

    On-policy algorithms record ``train/*`` after the dump of their iteration, so SB3 itself writes these values one
    rollout late, and the last ones never. `write_update` logs them immediately, and the dump that contains them again
    skips them.

    SB3's own values are logged at the steps of a budget, so that a long training run stays bounded; the last ones are
    always logged. Values of the user are logged at every dump.

    Args:
        run: Where the values go.
        learn_started: ``model.start_time`` of the ``learn()`` that this writer belongs to.
        on_dump: Called with the step after each dump.
        budget: The steps at which SB3's own values are logged.

    Attributes:
        run: Where the values go.
    """

    def __init__(self, run: Run, learn_started: float, on_dump: Callable[[int], None], budget: StepBudget) -> None:
        self.learn_started = learn_started
        self.run = run
        self._on_dump = on_dump
        self._budget = budget
        self._withheld: dict[str, tuple[dict[str, Any], int]] = {}  # the last values of each kind, with their step
        self._written: dict[str, Any] = {}
        self._skipped: set[str] = set()

    def install(self, logger: Logger) -> None:
        """Become an output of `logger`, and replace writers that a failed training run has left behind."""
        # `output_formats` and `name_to_value` are undocumented (SB3 2.9.2).
        if self in logger.output_formats:
            return
        logger.output_formats[:] = [
            output
            for output in logger.output_formats
            if not isinstance(output, SilentWriter)
            and not (isinstance(output, RunWriter) and output.learn_started != self.learn_started)
        ]
        self._written = _updates(logger.name_to_value)  # by an earlier training run with the same logger
        logger.output_formats.append(self)

    def remove(self, logger: Logger) -> None:
        """Leave the outputs of `logger`."""
        logger.output_formats[:] = [output for output in logger.output_formats if output is not self]

    def __reduce__(self) -> tuple[type[SilentWriter], tuple[()]]:
        """Leave something inert in a copied or pickled logger: the run is that of the original."""
        return SilentWriter, ()

    @never_in_the_way
    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log what SB3 dumps, except values that were recorded with ``exclude="mlflow"``."""
        stale = self._stale(key_values)
        fresh = {
            key: value
            for key, value in key_values.items()
            if key not in stale and key not in _TWICE and "mlflow" not in (key_excluded.get(key) or ())
        }
        own = {key: value for key, value in fresh.items() if key in _OWN or key.startswith(_UPDATES)}
        self._log({key: value for key, value in fresh.items() if key not in own}, step)
        self._log_if_due("dump", own, step)
        if not stale:
            self._written = _updates(key_values)
        self._on_dump(step)

    def write_update(self, logger: Logger, step: int) -> None:
        """Log ``train/*`` of an update that SB3 has made and not dumped yet."""
        values = logger.name_to_value
        count = values.get(_UPDATE_COUNT)
        if count is not None and count != self._written.get(_UPDATE_COUNT):
            self._written = _updates(values)
            self._log_if_due("update", self._written, step)

    def write_remaining(self, logger: Logger, step: int) -> None:
        """Log every value that was recorded and that SB3 will not dump any more, and the last ones of each kind."""
        for values, at in self._withheld.values():
            self._log(values, at)
        self._withheld = {}
        stale = self._stale(logger.name_to_value)
        left_out = stale | _TWICE
        self._log({key: value for key, value in logger.name_to_value.items() if key not in left_out}, step)

    def _log_if_due(self, kind: str, values: dict[str, Any], step: int) -> None:
        self._withheld.pop(kind, None)
        if self._budget.plots(step):
            self._log(values, step)
        elif values:
            self._withheld[kind] = (values, step)

    def close(self) -> None:
        """Do nothing, because the callback ends the run."""

    def _stale(self, values: Mapping[str, Any]) -> set[str]:
        """Return the keys of `values` that were already logged as part of the same update."""
        count = values.get(_UPDATE_COUNT)
        if count is None or count != self._written.get(_UPDATE_COUNT):
            return set()
        return {key for key, value in self._written.items() if key in values and values[key] is value}

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if not values:
            return
        try:
            self.run.log_metrics(values, step=step)
        except (InvalidNameError, MetricValueError):  # one of the values is not a metric, so none was logged
            self.run.log_metrics(self._metrics(values, step), step=step)

    def _metrics(self, values: Mapping[str, Any], step: int) -> dict[str, float]:
        """Log the media among `values`, and return the metrics; warn once about each other key."""
        metrics = {}
        for key, value in values.items():
            try:
                if not self._log_medium(key, value, step):
                    safe_name(key)
                    metrics[key] = to_scalar(key, value)
            except (InputError, ValueError) as error:
                if key not in self._skipped:
                    self._skipped.add(key)
                    logger.warning("%s; it is left out of the run", error)
        return metrics

    def _log_medium(self, key: str, value: object, step: int) -> bool:
        """Log a figure, image, video or table of hyperparameters; return False for anything else."""
        match value:
            case Figure():
                ending = "html" if hasattr(value.figure, "write_html") else "png"
                self.run.log_figure(value.figure, f"figures/{key}/{step:09d}.{ending}")
            case Image(image=str(path)):
                self.run.log_artifact(path, f"images/{key}")
            case Image():
                self.run.log_file(
                    f"images/{key}/{step:09d}.png", lambda path: save_image(value.image, value.dataformats, path)
                )
            case Video():
                self.run.log_file(
                    f"videos/{key}/{step:09d}.gif", lambda path: save_video(value.frames, value.fps, path)
                )
            case HParam():
                content = {"hyperparameters": dict(value.hparam_dict), "metrics": dict(value.metric_dict)}
                self.run.log_dict(content, f"hparams/{key}/{step:09d}.json")
            case _:
                return False
        return True


def _updates(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key.startswith(_UPDATES)}
