from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import BertForSequenceClassification, TrainingArguments

from tracking_callbacks.huggingface.params import describe


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), learning_rate=3e-4, use_cpu=True, hub_token="hf_" + "a" * 30)


def test_arguments_model_and_lora_become_flat_params(
    arguments: TrainingArguments, lora_model: PeftModel, base_folder: Path
) -> None:
    params = describe(arguments, lora_model).params

    assert params["learning_rate"] == 3e-4
    assert params["world_size"] == 1
    assert params["accelerator_config.split_batches"] is False
    assert params["model.hidden_size"] == 16
    assert params["model.id2label"] == "{'0': 'negative', '1': 'positive'}"
    assert params["lora.r"] == 4
    assert params["lora.target_modules"] == ["query", "value"]
    assert params["lora.task_type"] == "SEQ_CLS"
    assert params["base_model"] == str(base_folder)


def test_parameters_are_counted(arguments: TrainingArguments, lora_model: PeftModel) -> None:
    params = describe(arguments, lora_model).params

    trainable, total = lora_model.get_nb_trainable_parameters()
    assert (params["trainable_parameters"], params["total_parameters"]) == (trainable, total)
    assert params["trainable_ratio"] == pytest.approx(trainable / total, abs=1e-6)


def test_a_model_without_peft_trains_all_of_itself(
    arguments: TrainingArguments, full_model: BertForSequenceClassification
) -> None:
    description = describe(arguments, full_model)

    assert description.params["trainable_ratio"] == 1.0
    assert "peft_config.json" not in description.documents
    assert not [key for key in description.params if key.startswith("lora.")]


def test_several_adapters_keep_their_names(arguments: TrainingArguments, lora_model: PeftModel) -> None:
    lora_model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["key"]))

    params = describe(arguments, lora_model).params

    assert (params["lora.default.r"], params["lora.second.r"]) == (4, 2)


def test_other_peft_types_have_their_own_prefix(
    arguments: TrainingArguments, full_model: BertForSequenceClassification
) -> None:
    model = get_peft_model(full_model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))

    assert describe(arguments, model).params["prompt_tuning.num_virtual_tokens"] == 3


def test_patterns_by_module_name_stay_one_param(
    arguments: TrainingArguments, full_model: BertForSequenceClassification
) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], rank_pattern={"layer.0.attention.self.query": 2})

    params = describe(arguments, get_peft_model(full_model, config)).params

    assert params["lora.rank_pattern"] == "{'layer.0.attention.self.query': 2}"


def test_documents_are_whole_json_without_secrets(arguments: TrainingArguments, lora_model: PeftModel) -> None:
    documents = describe(arguments, lora_model).documents

    text = json.dumps(documents)
    assert set(documents) == {"training_args.json", "model_config.json", "peft_config.json"}
    assert documents["peft_config.json"]["default"]["modules_to_save"] == [
        "classifier",
        "score",
    ]  # PEFT's own choice
    assert documents["model_config.json"]["label2id"] == {"negative": 0, "positive": 1}
    assert "a" * 30 not in text
    assert " at 0x" not in text
