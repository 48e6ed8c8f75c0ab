"""Two processes of ``torchrun`` on the CPU: only the first one writes, to one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from huggingface.reading import runs_of
from processes import delivery_processes, free_port, wait_for
from tracking_callbacks import MLflowTracker

TRAIN = """
import json, os, sys
from pathlib import Path
import psutil, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from tracking_callbacks.huggingface import ClassificationMetrics, MLflowTrainerCallback

torch.set_num_threads(1)
base, name = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
rows = [{**tokenizer(text), "labels": int(text == "good")} for text in ["good", "bad"] * 8]
callback = MLflowTrainerCallback(registered_model_name=name, aliases=["champion"], log_checkpoints=True)

class Children(TrainerCallback):
    seen = 0
    def on_step_end(self, args, state, control, **kwargs):
        lines = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        self.seen = max(self.seen, sum("_delivery/__main__.py" in line for line in lines))

children = Children()
trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(base),
    args=TrainingArguments(
        output_dir="output", max_steps=4, per_device_train_batch_size=4, logging_steps=1, eval_strategy="steps",
        eval_steps=2, save_strategy="steps", save_steps=4, report_to="none", disable_tqdm=True, use_cpu=True,
    ),
    train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    compute_metrics=ClassificationMetrics(), callbacks=[callback, children],
)
trainer.evaluate()
trainer.train()
trainer.predict(rows)
if callback.run is not None:
    assert callback.run.flush(60).complete
report = {"children": children.seen, "run": callback.run is not None, "mlflow": "mlflow" in sys.modules,
          "history": trainer.state.log_history, "backend": torch.distributed.get_backend()}
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(report))
torch.distributed.destroy_process_group()
"""


def test_only_rank_0_writes_a_run(
    tracker: MLflowTracker,
    server,
    client: MlflowClient,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, experiment = f"distributed-{tmp_path.name}", tracker.settings.experiment_name
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"),
            *("train.py", str(base_folder), name),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["backend"] == "gloo"
    assert (first["run"], first["children"]) == (True, 1)
    assert (second["run"], second["children"], second["mlflow"]) == (False, 0, False)
    (run,) = runs_of(client, tracker)
    assert run.info.status == "FINISHED"
    assert (run.data.params["world_size"], run.data.params["per_device_train_batch_size"]) == ("2", "4")

    def stored(key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]

    def logged(key: str) -> list[tuple[int, Any]]:
        return [(entry["step"], entry[key]) for entry in first["history"] if key in entry]

    assert stored("train/loss") == logged("loss")
    assert [step for step, _ in stored("train/loss")] == [1, 2, 3, 4]
    assert stored("eval/accuracy")[1:] == logged("eval_accuracy")
    assert [step for step, _ in stored("eval/accuracy")] == [0, 2, 4]
    assert [step for step, _ in stored("test/loss")] == [4]
    assert client.get_model_version_by_alias(name, "champion").run_id == run.info.run_id
    assert len(client.search_model_versions(f"name = '{name}'")) == 1


FAILING = """
import os, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from tracking_callbacks.huggingface import MLflowTrainerCallback

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1" and state.global_step == 3:
            raise FloatingPointError("the loss of this part is not a number")

trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(sys.argv[1]),
    args=TrainingArguments("output", max_steps=8, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True),
    train_dataset=[{**tokenizer(text), "labels": 0} for text in ["good", "bad"] * 32],
    callbacks=[MLflowTrainerCallback(), Fails()],
)
trainer.train()
"""


def test_an_exception_in_another_rank_makes_the_run_failed_with_its_traceback(
    tracker: MLflowTracker,
    server,
    client: MlflowClient,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "train.py").write_text(FAILING)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracker.settings.experiment_name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*command, "train.py", str(base_folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "FloatingPointError" in done.stderr

    def ended() -> list[Any]:
        found = runs_of(client, tracker)
        return found if [run.info.status for run in found] == ["FAILED"] else []

    (run,) = wait_for(ended, "the run is FAILED")
    assert run.data.tags["tracking_callbacks.error_rank_1"].startswith("FloatingPointError")
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/error-rank-1.txt")
    assert "the loss of this part is not a number" in text
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps[:2] == [1, 2]
    wait_for(lambda: not delivery_processes(tmp_path), "no process is left")
    (again,) = runs_of(client, tracker)
    assert again.info.status == "FAILED"


SHARDED = """
import json, os, sys
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.bert.modeling_bert import BertLayer
from tracking_callbacks import TrackingError
from tracking_callbacks.huggingface.save_plan import plan_saving, prepare_model, saver_of
from tracking_callbacks.huggingface.sharded import gathered, is_sharded

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
base, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
inputs = tokenizer("good film", return_tensors="pt")
results = {}
for kind in ("full", "LoRA"):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    if kind == "LoRA":
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
        model = get_peft_model(model, config).eval()
    with torch.no_grad():
        expected = model(**inputs).logits
    assert not is_sharded(model)
    for layer in model.modules():
        if isinstance(layer, BertLayer):
            fully_shard(layer)
    fully_shard(model)
    assert is_sharded(model), kind
    try:
        prepare_model({"model": model}, 1, log_model="auto", code_paths=[], with_example=False)
        raise SystemExit("a sharded model was about to be saved by one process")
    except TrackingError:
        pass
    whole = gathered(model)
    assert (whole is None) == (rank != 0)
    if rank == 0:
        assert not is_sharded(whole)
        save, _ = saver_of(plan_saving(whole, tokenizer, None), whole, "auto", [])
        save(Path(folder, kind))
        with torch.no_grad():
            results[kind] = (whole.eval()(**inputs).logits - expected).abs().max().item()
        import mlflow
        loaded = mlflow.transformers.load_model(str(Path(folder, kind)), device="cpu").model.eval()
        with torch.no_grad():
            results[f"{kind} loaded"] = (loaded(**inputs).logits - expected).abs().max().item()
    torch.distributed.barrier()
if rank == 0:
    Path(folder, "results.json").write_text(json.dumps(results))
torch.distributed.destroy_process_group()
"""


def test_a_model_that_is_spread_over_processes_is_gathered_and_saved_whole(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate offers FSDP on accelerators only, so the test shards by `fully_shard` as it does, on the CPU."""
    (tmp_path / "shard.py").write_text(SHARDED)
    (tmp_path / "saved").mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"),
            *("shard.py", str(base_folder), str(tmp_path / "saved")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    differences = json.loads((tmp_path / "saved" / "results.json").read_text())

    assert set(differences) == {f"{kind}{loaded}" for kind in ("full", "LoRA") for loaded in ("", " loaded")}
    assert max(differences.values()) < 1e-6
