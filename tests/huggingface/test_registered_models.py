"""A registered model, loaded by its alias in a fresh process, predicts what the trained one did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast, Trainer

from huggingface.reading import finished_run
from huggingface.vocabulary import LABELS
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TEXTS = ["good film", "awful book play", "lovely"]
LOAD = """
import json, sys, mlflow, torch
expected, differences = json.loads(sys.argv[1]), {}
for name, (logits, labels) in expected.items():
    pipeline = mlflow.transformers.load_model(f"models:/{name}@champion")
    inputs = pipeline.tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)
    with torch.no_grad():
        differences[name] = (pipeline.model.eval()(**inputs).logits - torch.tensor(logits)).abs().max().item()
    table = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(json.loads(sys.argv[2]))
    assert list(table["label"]) == labels, (name, table, labels)
print(json.dumps(differences))
"""


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]} | settings)


def with_two_adapters(model: BertForSequenceClassification) -> Any:
    """The trained and active adapter is neither the first nor named ``default``."""
    model = get_peft_model(model, lora(), adapter_name="first")
    model.add_adapter("second", lora(r=2))
    model.set_adapter("second")
    return model


def with_added_adapter(model: BertForSequenceClassification) -> Any:
    model.add_adapter(lora(task_type=None, modules_to_save=["classifier"]))
    return model


MODELS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "adapter": ("adapter", "adapter", lambda model: get_peft_model(model, lora())),
    "second-adapter": ("adapter", "adapter", with_two_adapters),
    "dora": (
        *("adapter", "adapter"),
        lambda model: get_peft_model(
            model, lora(use_dora=True, use_rslora=True, alpha_pattern={"layer.1.attention.self.query": 2})
        ),
    ),
    "merged": ("merged", "merged", lambda model: get_peft_model(model, lora())),
    "auto": ("auto", "merged", lambda model: get_peft_model(model, lora())),
    "added-adapter": ("auto", "merged", with_added_adapter),
    "full": ("full", "full", lambda model: model),
}


def test_champions_loaded_by_alias_predict_as_trained(
    tracker: MLflowTracker,
    server,
    client: MlflowClient,
    make_trainer: Callable[..., Trainer],
    base_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    expected: dict[str, Any] = {}
    for kind, (log_model, form, adapted) in MODELS.items():
        base = Path(shutil.copytree(base_folder, tmp_path / f"base-{kind}"))
        torch.manual_seed(0)
        # the head's weights come with the adapter, because PEFT saves them next to it
        model = adapted(
            BertForSequenceClassification.from_pretrained(
                base, id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)}
            )
        )
        name = f"{kind}-{tmp_path.name}"
        callback = MLflowTrainerCallback(
            tracker, log_model=log_model, registered_model_name=name, aliases=["champion"], tags={"kind": kind}
        )
        make_trainer(model, callback, learning_rate=5e-2).train()
        run = finished_run(callback)
        assert "tracking_callbacks.model_error" not in client.get_run(run.run_id).data.tags, kind
        with torch.no_grad():
            logits = model.eval()(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
        expected[name] = (logits.tolist(), [LABELS[index] for index in logits.argmax(dim=-1)])
        version = client.get_model_version_by_alias(name, "champion")
        assert (str(version.version), version.run_id, version.tags["form"]) == ("1", run.run_id, form)
        if form != "adapter":
            shutil.rmtree(base)
    shutil.rmtree(base_folder)

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, json.dumps(expected), json.dumps(TEXTS)],
        env=os.environ | {"MLFLOW_TRACKING_URI": server.uri},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    differences = {
        key.partition(f"-{tmp_path.name}")[0]: it for key, it in json.loads(done.stdout.splitlines()[-1]).items()
    }
    bounds = {kind: 1e-5 if form == "merged" else 0.0 for kind, (_, form, _) in MODELS.items()}
    assert set(differences) == set(MODELS)
    assert {kind: it for kind, it in differences.items() if it > bounds[kind]} == {}
