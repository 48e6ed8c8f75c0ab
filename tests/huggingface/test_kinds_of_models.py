"""Each kind of model that people train is saved in the flavor that holds it best, and predicts the same elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from tracking_callbacks.huggingface.save_plan import plan_saving, saver_of, unwrapped

BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip
THREE = {0: "negative", 1: "neutral", 2: "positive"}

# A project of the user's own, which is not importable where the models are loaded.
NETS = '''
import torch
from transformers import (
    AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification, BertModel, BertPreTrainedModel,
    PretrainedConfig, PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput


class BagConfig(PretrainedConfig):
    model_type = "bag-of-words"

    def __init__(self, vocab_size=30, width=8, **more):
        super().__init__(**more)
        self.vocab_size, self.width = vocab_size, width


class BagForSequenceClassification(PreTrainedModel):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.width)
        self.head = torch.nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **ignored):
        return SequenceClassifierOutput(logits=self.head(self.words(input_ids).mean(1)))


AutoConfig.register("bag-of-words", BagConfig)
AutoModelForSequenceClassification.register(BagConfig, BagForSequenceClassification)


class TwoHeads(BertPreTrainedModel):
    """Sentiment and topic in one model."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.sentiment = torch.nn.Linear(config.hidden_size, 3)
        self.topic = torch.nn.Linear(config.hidden_size, 5)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
        pooled = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[1]
        return torch.cat([self.sentiment(pooled), self.topic(pooled)], -1),


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(30, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        return self.head(self.words(input_ids).mean(1)),
'''

LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["tracking_callbacks"] = None  # as if it were not installed: its entry points would be loaded with MLflow
import mlflow, torch
from mlflow.models import Model, validate_serving_input
results = {}
for name, row in json.load(open(sys.argv[1])).items():
    try:
        if row["load"] == "pytorch":
            model = mlflow.pytorch.load_model(row["folder"], weights_only=False)
        elif row["load"] == "sentence_transformers":
            model = mlflow.sentence_transformers.load_model(row["folder"])
            results[name] = model.encode([row["text"]]).tolist()
            assert mlflow.pyfunc.load_model(row["folder"]).predict([row["text"]]).tolist() == results[name]
            continue
        elif row["load"] == "components":
            model = mlflow.transformers.load_model(row["folder"], return_type="components")["model"]
        else:
            model = mlflow.transformers.load_model(row["folder"]).model
        for weight in [*model.parameters(), *model.buffers()]:
            weight.data = weight.data.clone()
        with torch.no_grad():
            results[name] = model.eval()(**torch.load(row["inputs"]))[0].tolist()
        if row["text"]:
            mlflow.pyfunc.load_model(row["folder"]).predict([row["text"]])
            example = Model.load(row["folder"]).get_serving_input(row["folder"])
            if example is not None:
                assert row["text"] in example
                validate_serving_input(row["folder"], example)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
json.dump(results, open(sys.argv[2], "w"))
"""


@dataclass
class Kind:
    """A kind of model: how it is made, and how it is expected to be saved and loaded."""

    make: Callable[[Workshop], Any]
    load: str
    form: str = "full"
    log_model: str = "auto"
    tokenizer: bool = True
    most_bytes: int | None = None
    predicts_text: bool = True
    inputs: Callable[[Any], dict[str, Any]] = dict


@dataclass
class Workshop:
    """Makes the models."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    nets: Any

    def config(self, **more: Any) -> BertConfig:
        return BertConfig(vocab_size=len(self.tokenizer), **(BERT | more))

    def base(self, model: Any) -> Path:
        place = self.folder / f"base-{len(list(self.folder.iterdir()))}"
        model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        return place

    def adapted(self, model: Any, **more: Any) -> Any:
        """Return the model with a LoRA adapter whose weights, and those of the new head, are not what they began as."""
        adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, **more))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight))
        return adapted

    def lora(self, labels: dict[int, str] | None = None) -> Any:
        base = self.base(BertForSequenceClassification(self.config()))
        more = {} if labels is None else {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
        model = BertForSequenceClassification.from_pretrained(base, ignore_mismatched_sizes=True, **more)
        return self.adapted(model, target_modules=["query"])

    def lora_on_a_language_model(self) -> Any:
        """A masked language model has no pooler, and PEFT does not save the new one."""
        base = self.base(BertForMaskedLM(self.config()))
        return self.adapted(BertForSequenceClassification.from_pretrained(base), target_modules=["query"])

    def lora_with_a_new_token(self) -> Any:
        base = self.base(BertForSequenceClassification(self.config()))
        model = BertForSequenceClassification.from_pretrained(base)
        model.resize_token_embeddings(len(self.tokenizer) + 3)
        return self.adapted(model, target_modules=["query"])

    def sentence_transformer(self) -> Any:
        """An encoder and the mean over its tokens."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        words = Transformer(str(self.base(BertModel(self.config()))), max_seq_length=8)
        return SentenceTransformer(modules=[words, Pooling(16)], device="cpu")

    def remote_code(self) -> Any:
        """A model whose code lies next to its weights, as many on the Hub have it."""
        model = self.nets.BagForSequenceClassification(self.nets.BagConfig(vocab_size=len(self.tokenizer)))
        place = self.base(model)
        (place / "modeling_bag.py").write_text(NETS.partition("AutoConfig.register")[0])
        content = json.loads((place / "config.json").read_text()) | {
            "auto_map": {
                "AutoConfig": "modeling_bag.BagConfig",
                "AutoModelForSequenceClassification": "modeling_bag.BagForSequenceClassification",
            }
        }
        (place / "config.json").write_text(json.dumps(content | {"model_type": "remote-bag"}))
        return AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True)


def pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": torch.ones(1, 3, 8, 8)}


def decoded(inputs: dict[str, Any]) -> dict[str, Any]:
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return kept | {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}


def without_types(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def realign(model: torch.nn.Module) -> None:
    """Move the weights to memory of torch's own allocator, as the loading process does.

    Safetensors maps its file into memory, where weights may lie at any multiple of eight bytes; torch's multiple is 64.
    The matrix product of one row takes another way for each, and differs by one unit in the last place.
    """
    for weight in [*model.parameters(), *model.buffers()]:
        weight.data = weight.data.clone()


T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
KINDS = {
    "sequence classifier": Kind(lambda make: BertForSequenceClassification(make.config()), "pipeline"),
    "LoRA, merged": Kind(lambda make: make.lora(), "pipeline", "merged"),
    "LoRA, adapter": Kind(lambda make: make.lora(), "pipeline", "adapter", "adapter", most_bytes=100_000),
    "LoRA, adapter of three labels on two": Kind(
        lambda make: make.lora(THREE), "pipeline", "adapter", "adapter", most_bytes=100_000
    ),
    "LoRA, adapter with its own label names": Kind(
        lambda make: make.lora({0: "no", 1: "yes"}), "pipeline", "adapter", "adapter", most_bytes=100_000
    ),
    "LoRA, adapter on a model without a pooler": Kind(
        lambda make: make.lora_on_a_language_model(), "pipeline", "adapter", "adapter",
    ),
    "LoRA, adapter with new tokens": Kind(
        lambda make: make.lora_with_a_new_token(), "pipeline", "adapter", "adapter"
    ),
    "token classifier": Kind(lambda make: BertForTokenClassification(make.config()), "pipeline"),
    "causal language model": Kind(
        lambda make: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(make.tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2,
            )
        ),
        "pipeline", inputs=without_types,
    ),
    "encoder": Kind(lambda make: BertModel(make.config()), "pipeline"),
    "question answering": Kind(
        lambda make: BertForQuestionAnswering(make.config()), "components", predicts_text=False
    ),
    "T5": Kind(
        lambda make: T5ForConditionalGeneration(T5Config(vocab_size=len(make.tokenizer), **T5)), "components",
        inputs=decoded, predicts_text=False,
    ),
    "T5 encoder": Kind(
        lambda make: T5EncoderModel(T5Config(vocab_size=len(make.tokenizer), **T5)), "components",
        inputs=without_types, predicts_text=False,
    ),
    "image classifier": Kind(
        lambda make: ViTForImageClassification(
            ViTConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                patch_size=4,
            )
        ),
        "pipeline", inputs=pixels, predicts_text=False,
    ),
    "registered class of the user's own": Kind(
        lambda make: make.nets.BagForSequenceClassification(make.nets.BagConfig(vocab_size=len(make.tokenizer))),
        "pipeline",
    ),
    "two heads": Kind(lambda make: make.nets.TwoHeads(make.config()), "components", predicts_text=False),
    "remote code": Kind(lambda make: make.remote_code(), "pipeline"),
    "compiled": Kind(lambda make: torch.compile(BertForSequenceClassification(make.config())), "pipeline"),
    "sentence transformer": Kind(
        lambda make: make.sentence_transformer(), "sentence_transformers", predicts_text=True,
    ),
    "module without transformers": Kind(lambda make: make.nets.Plain(), "pytorch", predicts_text=False),
    "without a tokenizer": Kind(
        lambda make: BertForSequenceClassification(make.config()), "pytorch", tokenizer=False, predicts_text=False
    ),
}  # fmt: skip


@dataclass
class Loaded:
    """What became of each kind."""

    folders: dict[str, Path]
    tags: dict[str, dict[str, str]]
    flavors: dict[str, str]
    expected: dict[str, torch.Tensor]
    found: dict[str, Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Iterator[Loaded]:
    """All kinds, saved by this process and loaded by another one, in one go: each import takes seconds."""
    root = tmp_path_factory.mktemp("kinds")
    project, elsewhere = root / "project", root / "elsewhere"
    for place in (project / "netproject", elsewhere, root / "bases"):
        place.mkdir(parents=True)
    (project / "pyproject.toml").touch()
    (project / "netproject" / "__init__.py").touch()
    (project / "netproject" / "nets.py").write_text(NETS)
    all_loaded = Loaded({}, {}, {}, {}, {})
    rows = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        patch.syspath_prepend(str(project))
        patch.chdir(project)
        set_seed(0)
        from netproject import nets

        workshop = Workshop(root / "bases", tokenizer, nets)
        encoded = dict(tokenizer("good film", return_tensors="pt"))
        for number, (name, kind) in enumerate(KINDS.items()):
            model = unwrapped(kind.make(workshop))
            processor: Any = ViTImageProcessor(size={"height": 8, "width": 8}) if kind.inputs is pixels else tokenizer
            plan = plan_saving(model, processor if kind.tokenizer else None, None)
            save, all_loaded.tags[name] = saver_of(plan, model, kind.log_model, None, "good film")
            folder = all_loaded.folders[name] = root / "saved" / str(number)
            folder.parent.mkdir(exist_ok=True)
            save(folder)
            inputs = kind.inputs(encoded)
            torch.save(inputs, root / f"{number}.pt")
            all_loaded.flavors[name] = plan.flavor
            realign(model)
            with torch.no_grad():
                all_loaded.expected[name] = (
                    torch.tensor(model.encode(["good film"]))
                    if kind.load == "sentence_transformers"
                    else model.eval()(**inputs)[0]
                )
            text = "good film" if kind.predicts_text else ""
            rows[name] = {
                "folder": str(folder), "inputs": str(root / f"{number}.pt"), "load": kind.load, "text": text
            }  # fmt: skip
    (root / "rows.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(root / "rows.json"), str(root / "found.json")],
        cwd=elsewhere,
        env=os.environ | {"HF_MODULES_CACHE": str(root / "modules elsewhere")},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    all_loaded.found = json.loads((root / "found.json").read_text())
    yield all_loaded
    for name in [name for name in sys.modules if name.partition(".")[0] == "netproject"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_predicts_the_same_elsewhere(loaded: Loaded, name: str) -> None:
    kind = KINDS[name]

    assert not isinstance(loaded.found[name], str), loaded.found[name]
    assert (torch.tensor(loaded.found[name]) - loaded.expected[name]).abs().max() == 0.0
    assert loaded.tags[name]["form"] == kind.form
    assert loaded.flavors[name] == (kind.load if kind.load in ("pytorch", "sentence_transformers") else "transformers")
    if kind.most_bytes is not None:
        size = sum(file.stat().st_size for file in loaded.folders[name].rglob("*") if file.is_file())
        assert size < kind.most_bytes


def test_no_model_of_transformers_own_needs_this_package(loaded: Loaded) -> None:
    needing = {
        name
        for name, folder in loaded.folders.items()
        if "tracking" in (folder / "requirements.txt").read_text() and name != "T5"
    }

    assert not needing


def test_an_adapter_refers_to_its_base_and_keeps_its_labels(loaded: Loaded) -> None:
    folder = loaded.folders["LoRA, adapter of three labels on two"]
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["transformers"]
    config = json.loads((folder / "model" / "config.json").read_text())
    base = json.loads((folder / "model" / "base.json").read_text())

    assert set(config["id2label"].values()) == set(THREE.values())
    assert Path(base["name_or_path"]).is_dir()
    assert "local_base_model_path" not in flavor
    assert not list(folder.glob("model/*.safetensors")), "the adapter has the whole head"
