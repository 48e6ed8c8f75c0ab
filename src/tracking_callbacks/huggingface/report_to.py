"""Makes our callback known to transformers by name, and lets a trainer hold it once and without MLflow's own."""

from __future__ import annotations

import functools
import logging
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, MLflowCallback
from transformers.trainer_callback import CallbackHandler

__all__ = ["NAME", "install"]

logger = logging.getLogger(__name__)

NAME = "tracking_callbacks"  # in ``TrainingArguments(report_to=…)``

_MARK = "_tracking_callbacks_keeps_one"
_BY_NAME = "_named_in_report_to"  # attribute of an instance that transformers has made from the class


def install(callback_class: type) -> None:
    """Accept ``report_to="tracking_callbacks"``, and see what callbacks a trainer is given; a second call does nothing.

    Every way to name a callback ends in ``CallbackHandler.add_callback``, which is wrapped: ``report_to``,
    ``Trainer(callbacks=…)``, ``Trainer.add_callback``, and ``mlflow.transformers.autolog``, which adds MLflow's when
    training begins.

    Args:
        callback_class: Our callback.
    """
    method: Any = CallbackHandler.add_callback
    if hasattr(method, _MARK):
        return

    @functools.wraps(method)
    def add_callback(self: CallbackHandler, callback: Any) -> None:
        ours = [one for one in self.callbacks if isinstance(one, callback_class)]
        by_name = isinstance(callback, type) and issubclass(callback, callback_class)
        if by_name and ours:
            return
        method(self, callback)
        if by_name:
            setattr(self.callbacks[-1], _BY_NAME, True)
        elif isinstance(callback, callback_class):  # it has settings, which one that was made by name has not
            self.callbacks[:] = [one for one in self.callbacks if not hasattr(one, _BY_NAME)]
        _take_out_own(self, callback_class)

    setattr(add_callback, _MARK, True)
    CallbackHandler.add_callback = add_callback  # type: ignore[method-assign]
    INTEGRATION_TO_CALLBACK[NAME] = callback_class


def _take_out_own(handler: CallbackHandler, callback_class: type) -> None:
    """Take transformers' own ``MLflowCallback`` out: both would write the same run twice."""
    if any(isinstance(one, callback_class) for one in handler.callbacks):
        kept = [one for one in handler.callbacks if type(one) is not MLflowCallback]
        if len(kept) < len(handler.callbacks):
            name = callback_class.__name__
            logger.warning("transformers' own MLflowCallback is taken out of the trainer: %s does its work", name)
            handler.callbacks[:] = kept
