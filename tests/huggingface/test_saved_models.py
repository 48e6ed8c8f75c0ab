from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from tracking_callbacks import ConfigError, TrackingError
from tracking_callbacks.huggingface.model import (
    ModelForm,
    check_choice,
    choose_form,
    processor_of,
    save_mlmodel,
)

TEXTS = ["good film", "awful book play", "lovely"]

LOAD = """
import json, sys, mlflow, torch
pipeline = mlflow.transformers.load_model(sys.argv[1])
inputs = pipeline.tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)
with torch.no_grad():
    logits = pipeline.model.eval()(**inputs).logits
table = mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2]))
print(json.dumps({"logits": logits.tolist(), "labels": list(table["label"])}))
"""


def logits_of(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits


def load_elsewhere(folder: Path, **environment: str) -> dict[str, Any]:
    """Load a model in a fresh process and return its logits and labels for `TEXTS`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(folder), json.dumps(TEXTS)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def difference(loaded: dict[str, Any], expected: torch.Tensor) -> float:
    return (torch.tensor(loaded["logits"]) - expected).abs().max().item()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def test_a_merged_model_predicts_the_same_without_its_base(
    lora_model: PeftModel, base_folder: Path, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    expected = logits_of(lora_model, tokenizer)
    chosen = choose_form("auto", lora_model)
    save_mlmodel(lora_model, tokenizer, folder, chosen)
    shutil.rmtree(base_folder)

    loaded = load_elsewhere(folder)

    assert chosen.form is ModelForm.MERGED
    assert str(base_folder) in chosen.notice
    assert difference(loaded, expected) <= 1e-5
    assert set(loaded["labels"]) <= {"negative", "positive"}


def test_a_full_model_predicts_exactly_the_same_without_its_base(
    full_model: BertForSequenceClassification,
    base_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    expected = logits_of(full_model, tokenizer)
    save_mlmodel(full_model, tokenizer, folder, choose_form("auto", full_model))
    shutil.rmtree(base_folder)

    assert difference(load_elsewhere(folder), expected) == 0.0


def test_an_adapter_predicts_exactly_the_same_beside_its_base(
    lora_model: PeftModel, base_folder: Path, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    expected = logits_of(lora_model, tokenizer)
    chosen = choose_form("adapter", lora_model)
    save_mlmodel(lora_model, tokenizer, folder, chosen)

    assert chosen.form is ModelForm.ADAPTER
    assert f"loads only where the path {base_folder} exists" in chosen.notice
    assert difference(load_elsewhere(folder), expected) == 0.0
    assert not list(folder.rglob("model.safetensors"))


@pytest.mark.parametrize("choice", ["merged", "adapter"])
def test_saving_leaves_the_trained_model_as_it_was(
    lora_model: PeftModel, tokenizer: PreTrainedTokenizerFast, folder: Path, choice: str
) -> None:
    lora_model.train()
    lora_model.base_model.model.bert.embeddings.eval()
    modes = [module.training for module in lora_model.modules()]
    weights = {name: weight.clone() for name, weight in lora_model.state_dict().items()}
    names = (lora_model.name_or_path, lora_model.config.to_dict())

    save_mlmodel(lora_model, tokenizer, folder, choose_form(choice, lora_model))

    assert [module.training for module in lora_model.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in lora_model.state_dict().items())
    assert (lora_model.name_or_path, lora_model.config.to_dict()) == names
    assert [parameter.requires_grad for parameter in lora_model.parameters()].count(True) > 0


def test_saving_a_full_model_leaves_its_name(
    full_model: BertForSequenceClassification,
    base_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    save_mlmodel(full_model, tokenizer, folder, choose_form("full", full_model))

    assert full_model.name_or_path == str(base_folder)


def test_the_folder_has_signature_example_and_pinned_requirements(
    lora_model: PeftModel, base_folder: Path, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    save_mlmodel(lora_model, tokenizer, folder, choose_form("merged", lora_model))

    mlmodel = mlflow.models.Model.load(str(folder))
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert mlmodel.signature.inputs.to_dict() == [{"type": "string", "required": True}]
    assert [column["name"] for column in mlmodel.signature.outputs.to_dict()] == ["label", "score"]
    assert mlmodel.load_input_example(str(folder)) is not None
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "torch", "transformers"]
    assert all("==" in line and "+" not in line for line in requirements)
    assert mlmodel.flavors["transformers"]["source_model_name"] == str(base_folder)
    assert mlmodel.metadata == {"form": "merged", "base_model": str(base_folder)}
    assert not (folder / "LICENSE.txt").exists()


def test_an_adapter_on_a_hub_model_names_it_by_commit(
    lora_model: PeftModel, base_folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The Hub's cache is laid out as huggingface_hub leaves it after a download."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "hub" / "models--tiny--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base_folder, repository / "snapshots" / commit)
    train_and_save = """
import json, sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tracking_callbacks.huggingface.model import choose_form, save_mlmodel
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained("tiny/bert")
config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
model, tokenizer = get_peft_model(model, config).eval(), AutoTokenizer.from_pretrained("tiny/bert")
chosen = choose_form("auto", model)
save_mlmodel(model, tokenizer, Path(sys.argv[1]), chosen)
with torch.no_grad():
    logits = model(**tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)).logits
print(json.dumps({"logits": logits.tolist(), "form": chosen.form, "notice": chosen.notice}))
"""
    environment = {"HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", train_and_save, str(tmp_path / "saved"), json.dumps(TEXTS)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout.splitlines()[-1])
    flavor = yaml.safe_load((tmp_path / "saved" / "MLmodel").read_text())["flavors"]["transformers"]

    loaded = load_elsewhere(tmp_path / "saved", **environment)

    assert (trained["form"], trained["notice"]) == ("adapter", "")
    assert (flavor["source_model_name"], flavor["source_model_revision"]) == ("tiny/bert", commit)
    assert str(tmp_path) not in json.dumps(flavor)
    assert difference(loaded, torch.tensor(trained["logits"])) == 0.0


def test_an_adapter_that_could_not_be_loaded_is_refused(base_folder: Path) -> None:
    three = BertForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    model = get_peft_model(three, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))

    with pytest.raises(TrackingError, match="number of labels"):
        choose_form("adapter", model)
    assert choose_form("auto", model).form is ModelForm.MERGED


def test_what_cannot_be_merged_stays_an_adapter(full_model: BertForSequenceClassification) -> None:
    model = get_peft_model(full_model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))

    assert choose_form("auto", model).form is ModelForm.ADAPTER
    with pytest.raises(ConfigError, match="PROMPT_TUNING cannot be merged"):
        check_choice("merged", model)


@pytest.mark.parametrize("choice", ["adapter", "merged"])
def test_a_choice_that_needs_peft_is_refused_without_it(full_model: BertForSequenceClassification, choice: str) -> None:
    with pytest.raises(ConfigError, match=f"log_model: '{choice}' needs a PEFT model, got BertForSequence"):
        check_choice(choice, full_model)


@pytest.mark.parametrize("choice", ["whole", "", True, None])
def test_an_unknown_choice_is_refused(choice: Any) -> None:
    with pytest.raises(ConfigError, match="expected 'auto', 'adapter', 'merged', 'full' or False"):
        check_choice(choice)


def test_the_tokenizer_is_found_beside_the_base_model(
    lora_model: PeftModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = processor_of(None, None, lora_model)

    assert found.get_vocab() == tokenizer.get_vocab()


def test_a_model_without_a_pipeline_says_so(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))

    with pytest.raises(TrackingError, match="no pipeline for a T5ForConditionalGeneration"):
        save_mlmodel(model, tokenizer, folder, choose_form("auto", model))
