from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import BertForSequenceClassification, BitsAndBytesConfig, Trainer, TrainingArguments

from faults.proxy import running_proxy
from huggingface.reading import finished_run
from processes import artifacts, stop_delivery
from servers import Server
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._callbacks.description import log_description
from tracking_callbacks.huggingface import MLflowTrainerCallback
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
    assert params["trainable_percent"] == pytest.approx(100 * trainable / total, abs=1e-4)


def test_all_parameters_of_a_model_without_peft_are_trainable(
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            AdaLoraConfig(task_type="SEQ_CLS", init_r=6, target_r=3, total_step=9, target_modules=["query"]),
            {"adalora.init_r": 6, "adalora.target_r": 3, "adalora.total_step": 9},
        ),
        (
            IA3Config(
                task_type="SEQ_CLS", target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]
            ),
            {"ia3.target_modules": ["output.dense", "query"], "ia3.feedforward_modules": ["output.dense"]},
        ),
        (
            PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
            {"prompt_tuning.num_virtual_tokens": 3, "prompt_tuning.prompt_tuning_init": "RANDOM"},
        ),
    ],
    ids=["AdaLoRA", "IA3", "prompt tuning"],
)
def test_other_peft_types_have_their_own_prefix(
    arguments: TrainingArguments,
    full_model: BertForSequenceClassification,
    base_folder: Path,
    config: Any,
    expected: dict[str, Any],
) -> None:
    model = get_peft_model(full_model, config)

    params = describe(arguments, model).params

    trainable, total = model.get_nb_trainable_parameters()
    assert {key: params[key] for key in expected} == expected
    assert params["base_model"] == str(base_folder)
    assert (params["trainable_parameters"], params["total_parameters"]) == (trainable, total)
    assert 0 < params["trainable_ratio"] < 0.5


def test_lora_has_all_its_settings(arguments: TrainingArguments, full_model: BertForSequenceClassification) -> None:
    config = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["value", "query"],
        use_rslora=True,
        use_dora=True,
        alpha_pattern={"layer.1.attention.self.query": 32},
        modules_to_save=["pooler"],
        revision="a" * 40,
    )

    params = describe(arguments, get_peft_model(full_model, config)).params

    assert {key: params[f"lora.{key}"] for key in ("use_rslora", "use_dora", "alpha_pattern", "target_modules")} == {
        "use_rslora": True,
        "use_dora": True,
        "alpha_pattern": "{'layer.1.attention.self.query': 32}",
        "target_modules": ["query", "value"],  # a set is sorted, so that two runs can be compared
    }
    assert "pooler" in params["lora.modules_to_save"]
    assert params["lora.revision"] == "a" * 40


def test_adapters_added_to_a_model_are_described_like_those_around_it(
    arguments: TrainingArguments, full_model: BertForSequenceClassification, base_folder: Path
) -> None:
    full_model.add_adapter(LoraConfig(r=4, target_modules=["query"]))
    description = describe(arguments, full_model)

    assert description.params["lora.r"] == 4
    assert description.params["base_model"] == str(base_folder)
    assert description.documents["peft_config.json"]["default"]["r"] == 4
    assert 0 < description.params["trainable_ratio"] < 1


def test_the_quantisation_of_the_base_is_described(
    arguments: TrainingArguments, full_model: BertForSequenceClassification
) -> None:
    full_model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)

    description = describe(arguments, full_model)

    assert description.params["model.quantization_config.load_in_8bit"] is True
    assert description.params["model.quantization_config.quant_method"] == "bitsandbytes"
    json.dumps(description.documents)


def test_patterns_by_module_name_stay_one_param(
    arguments: TrainingArguments, full_model: BertForSequenceClassification
) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], rank_pattern={"layer.0.attention.self.query": 2})

    params = describe(arguments, get_peft_model(full_model, config)).params

    assert params["lora.rank_pattern"] == "{'layer.0.attention.self.query': 2}"


def test_documents_are_complete_json_without_secrets(arguments: TrainingArguments, lora_model: PeftModel) -> None:
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


def test_the_server_has_long_values_truncated_and_in_full_and_no_secret(
    tracker: MLflowTracker,
    client: MlflowClient,
    make_trainer: Callable[..., Trainer],
    full_model: BertForSequenceClassification,
    tmp_path: Path,
) -> None:
    full_model.config.notes = "x" * 7_000
    callback = MLflowTrainerCallback(tracker, log_model=False)
    make_trainer(full_model, callback, hub_token="hf_" + "a" * 30, max_steps=1).train()
    run = finished_run(callback)

    stored = client.get_run(run.run_id).data.params
    assert stored["model.notes"] == "x" * 5_999 + "…"
    assert stored["hub_token"] == "***"
    folder = Path(client.download_artifacts(run.run_id, "config", str(tmp_path)))
    documents = {path.name: path.read_text() for path in folder.iterdir()}
    assert json.loads(documents["model_config.json"])["notes"] == "x" * 7_000
    assert json.loads(documents["training_args.json"])["learning_rate"] == 1e-2
    assert not [name for name, text in documents.items() if "a" * 30 in text]


def test_a_store_with_a_limit_gets_the_telling_params_and_refuses_the_rest_in_one_line(
    arguments: TrainingArguments, lora_model: PeftModel, server: Server, client: MlflowClient, tmp_path: Path
) -> None:
    description = describe(arguments, lora_model)
    with running_proxy(server.uri) as proxy:
        proxy.max_params = 60
        tracker = MLflowTracker(proxy.uri, "limited", delivery=Delivery(journal_root=tmp_path / "journal"))
        with tracker.start_run() as run:
            log_description(run, description)
            run.log_metrics({"loss": 1.0})
        report = run.flush()
        stored = client.get_run(run.run_id).data
        folder = client.download_artifacts(run.run_id, "tracking_callbacks", str(tmp_path))
        stop_delivery(tmp_path)
    (line,) = Path(folder, "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    refused = json.loads(line)

    assert set(stored.params) == set(list(description.params)[:60])
    telling = {"base_model", "learning_rate", "per_device_train_batch_size", "lora.r", "lora.target_modules", "seed"}
    changed = {"hub_token"} if "fsdp_config.xla" not in stored.params else set()  # transformers 5.0 changes many itself
    assert telling | {"trainable_parameters", "total_parameters"} | changed <= set(stored.params)
    assert set(refused["params"]) == set(description.params) - set(stored.params)
    assert "Limit=60" in refused["reason"]
    assert stored.metrics == {"loss": 1.0}
    assert (report.rejected, report.pending) == (len(description.params) - 60, 0)
    assert {"config/training_args.json", "config/model_config.json"} <= set(artifacts(client, run.run_id))
