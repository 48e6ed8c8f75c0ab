"""Takes transformers' own MLflow callback out of a trainer that this package tracks: both write the same run twice."""

from __future__ import annotations

import functools
import logging
from typing import Any

from transformers.integrations.integration_utils import MLflowCallback
from transformers.trainer_callback import CallbackHandler

__all__ = ["replace_own_callback"]

logger = logging.getLogger(__name__)

_MARK = "_tracking_callbacks_replaces"


def replace_own_callback(callback_class: type) -> None:
    """Let no trainer hold transformers' ``MLflowCallback`` together with a `callback_class`.

    Every way to name it ends in ``CallbackHandler.add_callback``, which is wrapped once: ``report_to="mlflow"``,
    ``Trainer.add_callback``, and ``mlflow.transformers.autolog``, which adds it when training begins.

    Args:
        callback_class: Our callback.
    """
    method: Any = CallbackHandler.add_callback
    if hasattr(method, _MARK):
        return

    @functools.wraps(method)
    def add_callback(self: CallbackHandler, callback: Any) -> None:
        method(self, callback)
        if any(isinstance(one, callback_class) for one in self.callbacks):
            kept = [one for one in self.callbacks if type(one) is not MLflowCallback]
            if len(kept) < len(self.callbacks):
                name = callback_class.__name__
                logger.warning("transformers' own MLflowCallback is taken out of the trainer: %s does its work", name)
                self.callbacks[:] = kept

    setattr(add_callback, _MARK, True)
    CallbackHandler.add_callback = add_callback  # type: ignore[method-assign]
