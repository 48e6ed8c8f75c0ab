"""Tracking for Hugging Face's ``Trainer``; the only part of the package that imports transformers and PEFT.

from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback

trainer = Trainer(..., compute_metrics=ClassificationMetrics(), callbacks=[MLflowTrainerCallback()])

Once it is imported, ``TrainingArguments(report_to="tracking_callbacks")`` works too.
"""

from tracking_callbacks.huggingface.callback import MLflowTrainerCallback
from tracking_callbacks.huggingface.classification import ClassificationMetrics
from tracking_callbacks.huggingface.report_to import install
from tracking_callbacks.huggingface.task_metrics import (
    MultiLabelMetrics,
    RegressionMetrics,
    TokenClassificationMetrics,
)

__all__ = [
    "ClassificationMetrics",
    "MLflowTrainerCallback",
    "MultiLabelMetrics",
    "RegressionMetrics",
    "TokenClassificationMetrics",
]

install(MLflowTrainerCallback)
