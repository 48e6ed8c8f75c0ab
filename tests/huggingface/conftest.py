"""A tiny BERT, a tiny tokenizer and a tiny data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from huggingface.vocabulary import LABELS, WORDS
from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback

TrainerFactory = Callable[..., Trainer]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {word: index for index, word in enumerate([*special.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def sentences(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    texts = [f"{adjective} {noun}" for adjective in WORDS[:6] for noun in WORDS[6:]]
    labels = [int(text.split()[0] in WORDS[:3]) for text in texts]
    return Dataset.from_dict({**tokenizer(texts), "labels": labels})


@pytest.fixture
def base_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a pretrained tiny BERT that knows nothing of our labels."""
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    folder = tmp_path / "base"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def full_model(base_folder: Path) -> BertForSequenceClassification:
    return BertForSequenceClassification.from_pretrained(
        base_folder,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


@pytest.fixture
def lora_model(full_model: BertForSequenceClassification) -> PeftModel:
    """LoRA with weights as after training, because fresh weights would add nothing to the base."""
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = get_peft_model(full_model, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def make_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, sentences: Dataset) -> Iterator[TrainerFactory]:
    """Build a Trainer of six steps that logs every second one; keyword arguments are TrainingArguments.

    Trainer's own ``model_init`` and ``eval_dataset`` are accepted, too.
    """
    callbacks: list[MLflowTrainerCallback] = []

    def make(model: Any, callback: MLflowTrainerCallback | None = None, **arguments: Any) -> Trainer:
        callbacks.extend([callback] if callback else [])
        settings = {
            "output_dir": str(tmp_path / "output"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        given = {name: arguments.pop(name) for name in ("model_init", "eval_dataset") if name in arguments}
        return Trainer(
            model=model,
            args=TrainingArguments(**settings | arguments),
            train_dataset=sentences,
            processing_class=tokenizer,
            compute_metrics=ClassificationMetrics(LABELS),
            callbacks=[callback] if callback else None,
            **{"eval_dataset": sentences} | given,
        )

    yield make
    for callback in callbacks:
        if callback.run is not None:
            callback.run.flush(timeout=60)
