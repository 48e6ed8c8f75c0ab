"""ZeRO-3 of DeepSpeed and SetFit, which the lock leaves out: ``make trainers`` installs them and runs these tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from mlflow import MlflowClient
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from huggingface.reading import finished_run, runs_of
from processes import free_port
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

ZERO_3 = """
import json, os, sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
from tracking_callbacks.huggingface import MLflowTrainerCallback
from tracking_callbacks.huggingface.sharded import is_sharded

torch.set_num_threads(1)
base, kind = sys.argv[1:]
zero_3 = {
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    "train_micro_batch_size_per_gpu": "auto",
    "zero_force_ds_cpu_optimizer": False,
}
arguments = TrainingArguments(
    output_dir="output", max_steps=4, per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-2,
    save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True, deepspeed=zero_3,
)
tokenizer = AutoTokenizer.from_pretrained(base)
rows = [{**tokenizer(text), "labels": int(text == "good")} for text in ["good", "bad"] * 8]
model = AutoModelForSequenceClassification.from_pretrained(base)
if kind == "lora":
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
callback = MLflowTrainerCallback(
    registered_model_name=f"zero-3-{kind}", aliases=["champion"], log_model="merged" if kind == "lora" else "auto",
    log_checkpoints="models",
)
trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
trainer.train()
assert is_sharded(trainer.model)
trainer.save_model("saved by the trainer")
if callback.run is not None:
    assert callback.run.flush(60).complete
torch.distributed.barrier()  # a process that leaves gloo while the other one still works may abort
torch.distributed.destroy_process_group()
"""

LOAD = """
import json, sys
import mlflow, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

uri, base, kind = sys.argv[1:]
mlflow.set_tracking_uri(uri)
loaded = mlflow.transformers.load_model(f"models:/zero-3-{kind}@champion", device="cpu").model
if kind == "lora":
    expected = AutoModelForSequenceClassification.from_pretrained(base)
    expected = PeftModel.from_pretrained(expected, "saved by the trainer").merge_and_unload()
else:
    expected = AutoModelForSequenceClassification.from_pretrained("saved by the trainer")
inputs = AutoTokenizer.from_pretrained(base)("good film", return_tensors="pt")
logits = []
for model in (loaded, expected):
    for weight in [*model.parameters(), *model.buffers()]:
        weight.data = weight.data.clone()
    with torch.no_grad():
        logits.append(model.eval()(**inputs).logits)
weights = zip(loaded.state_dict().values(), expected.state_dict().values(), strict=True)
print(json.dumps([(logits[0] - logits[1]).abs().max().item(), max((a - b).abs().max().item() for a, b in weights)]))
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_zero_3_spreads_over_processes_is_registered_whole(
    kind: str,
    tracker: MLflowTracker,
    server: Any,
    client: MlflowClient,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "train.py").write_text(ZERO_3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracker.settings.experiment_name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    for command in ([*launch, "train.py", str(base_folder), kind], ["-c", LOAD, server.uri, str(base_folder), kind]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]

    assert json.loads(done.stdout.splitlines()[-1]) == [0.0, 0.0]
    (run,) = runs_of(client, tracker)
    assert run.info.status == "FINISHED"
    assert "tracking_callbacks.model_error" not in run.data.tags
    models = client.search_logged_models([run.info.experiment_id])
    assert {model.name for model in models} == {"checkpoint-2", "checkpoint-4", "model"}


def test_a_setfit_model_is_kept_with_its_fitted_head(
    tracker: MLflowTracker, client: MlflowClient, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    setfit = pytest.importorskip("setfit")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from sklearn.linear_model import LogisticRegression

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    for part in (BertModel(config), tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    words = Transformer(str(tmp_path / "encoder"), max_seq_length=8)
    encoder = SentenceTransformer(modules=[words, Pooling(16)], device="cpu")
    model = setfit.SetFitModel(encoder, LogisticRegression(), labels=["bad", "good"])
    texts = ["good film", "lovely book", "bad film", "awful play"]
    callback = MLflowTrainerCallback(tracker)
    trainer = setfit.Trainer(
        model,
        setfit.TrainingArguments(str(tmp_path / "output"), batch_size=4, max_steps=4, report_to="none"),
        train_dataset=Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0]}),
        callbacks=[callback],
    )
    trainer.train()
    run = finished_run(callback)
    client.download_artifacts(run.run_id, "model_files", str(tmp_path))
    loaded = setfit.SetFitModel.from_pretrained(str(tmp_path / "model_files"), device="cpu")

    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert loaded.labels == ["bad", "good"]
    assert (loaded.predict_proba(texts) - model.predict_proba(texts)).abs().max() == 0.0
