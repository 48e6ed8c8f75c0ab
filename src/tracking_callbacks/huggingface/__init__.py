"""Tracking for Hugging Face's ``Trainer``; the only part of the package that imports transformers and PEFT.

from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback

trainer = Trainer(..., compute_metrics=ClassificationMetrics(), callbacks=[MLflowTrainerCallback()])
"""

from tracking_callbacks.huggingface.callback import MLflowTrainerCallback
from tracking_callbacks.huggingface.classification import ClassificationMetrics

__all__ = ["ClassificationMetrics", "MLflowTrainerCallback"]
