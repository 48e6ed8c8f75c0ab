"""Two processes of ``torchrun`` on the CPU: only the first one writes, to one run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from huggingface.reading import runs_of
from processes import delivery_processes, free_port, run_script, wait_for
from tracking_callbacks import MLflowTracker
from tracking_callbacks._journal.layout import JournalRoot
from tracking_callbacks._journal.pending import pending_runs

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
        below = psutil.Process().children(recursive=True)
        found = {child.pid: child.ppid() for child in below if "_delivery/__main__.py" in " ".join(child.cmdline())}
        # A process that delivery is just starting has delivery's command line until it has its own.
        self.seen = max(self.seen, sum(parent not in found for parent in found.values()))

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


NODES = """
import os, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from tracking_callbacks.huggingface import MLflowTrainerCallback

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

class TrainsUntilTheTestHasSeenEnough(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.02)
        enough = torch.tensor(float(Path("enough").exists()))
        torch.distributed.all_reduce(enough)
        control.should_training_stop = bool(enough)

trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(sys.argv[1]),
    args=TrainingArguments("output", max_steps=5000, logging_steps=10, report_to="none", disable_tqdm=True,
                           save_strategy="no", use_cpu=True),
    train_dataset=[{**tokenizer(text), "labels": 0} for text in ["good", "bad"] * 32],
    callbacks=[MLflowTrainerCallback(log_model=False), TrainsUntilTheTestHasSeenEnough()],
)
trainer.train()
Path(f"done-{os.environ['RANK']}").touch()
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


class Nodes:
    """Two agents of torchrun on this machine, each with a folder and a journal root to itself."""

    def __init__(self, folder: Path, base_folder: Path, processes: int) -> None:
        self.folders = [folder / f"machine-{number}" for number in (0, 1)]
        port = free_port()
        self.agents = [
            self._start(number, base_folder, f"--nproc_per_node={processes}", f"--master_port={port}")
            for number in (0, 1)
        ]

    def _start(self, number: int, base_folder: Path, *options: str) -> subprocess.Popen[bytes]:
        folder = self.folders[number]
        folder.mkdir()
        (folder / "pyproject.toml").touch()
        (folder / "train.py").write_text(NODES)
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={number}"]
        with open(folder / "output.txt", "wb") as output:
            return subprocess.Popen(
                [*command, "--master_addr=127.0.0.1", *options, "train.py", str(base_folder)],
                cwd=folder,
                stdout=output,
                stderr=output,
            )

    def wait(self) -> list[int]:
        return [agent.wait(timeout=60) for agent in self.agents]

    def kill(self, number: int) -> None:
        """Kill all processes of a machine, as its loss does."""
        agent = psutil.Process(self.agents[number].pid)
        for process in [agent, *agent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.agents[number].wait()

    def output(self, number: int) -> str:
        return (self.folders[number] / "output.txt").read_text()


@pytest.fixture
def nodes(
    tracker: MLflowTracker, server: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Nodes]]:
    """Starts distributed training, of which nothing is left in the end."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracker.settings.experiment_name)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started: list[Nodes] = []

    def start(processes: int) -> Nodes:
        started.append(Nodes(tmp_path, base_folder, processes))
        return started[0]

    yield start
    for one in started:
        for number in (0, 1):
            if one.agents[number].poll() is None:
                one.kill(number)


def series(client: MlflowClient, tracker: MLflowTracker) -> tuple[Any, dict[str, list[Any]]]:
    """Return the only run, and the points of a metric of each machine."""
    (run,) = runs_of(client, tracker)
    ending = "/system_memory_usage_percentage"
    keys = [key for key in run.data.metrics if key.startswith("system/") and key.endswith(ending)]
    return run, {key: client.get_metric_history(run.info.run_id, key) for key in keys}


def both_have(count: int, client: MlflowClient, tracker: MLflowTracker) -> bool:
    if client.get_experiment_by_name(tracker.settings.experiment_name) is None or not runs_of(client, tracker):
        return False
    _, found = series(client, tracker)
    return len(found) == 2 and all(len(points) >= count for points in found.values())


def test_each_machine_has_its_system_metrics_once_in_the_one_run(
    tracker: MLflowTracker, client: MlflowClient, nodes: Callable[[int], Nodes]
) -> None:
    machines = nodes(2)
    wait_for(lambda: both_have(3, client, tracker), "both machines have system metrics", seconds=60)
    assert [len(delivery_processes(folder)) for folder in machines.folders] == [1, 1]
    (machines.folders[0] / "enough").touch()
    codes = machines.wait()

    # gloo aborts one in twenty processes while they end, also without any tracking.
    for number, code in enumerate(codes):
        assert code == 0 or "SIGABRT" in machines.output(number), machines.output(number)[-4000:]
    assert all((machines.folders[rank // 2] / f"done-{rank}").exists() for rank in range(4))
    for folder in machines.folders:
        wait_for(lambda folder=folder: not delivery_processes(folder), "everything is delivered")
    run, found = series(client, tracker)
    assert run.info.status == "FINISHED"
    assert set(found) == {f"system/node_{number}/system_memory_usage_percentage" for number in (0, 1)}
    for points in found.values():
        times = [point.timestamp for point in points]
        assert run.info.start_time <= times[0]
        assert times[-1] <= run.info.end_time + 2000  # the other machine notices the end a little later
        assert all(later - earlier >= 195 for earlier, later in pairwise(times))
        steps = [point.step for point in points]
        assert steps == [round((time - run.info.start_time) / 200) for time in times]
    names = [{key.split("/")[2] for key in run.data.metrics if f"/node_{number}/" in key} for number in (0, 1)]
    assert names[0] == names[1] >= {"cpu_utilization_percentage", "network_receive_megabytes"}
    assert not [key for key in run.data.metrics if key.startswith("system/") and "/node_" not in key]
    assert [len(list((folder / ".tracking_callbacks").glob("*/*.journal"))) for folder in machines.folders] == [0, 0]


def test_a_machine_that_dies_changes_neither_the_status_nor_the_number_of_runs(
    tracker: MLflowTracker, server: Any, client: MlflowClient, nodes: Callable[[int], Nodes]
) -> None:
    machines = nodes(1)
    wait_for(lambda: both_have(2, client, tracker), "both machines have system metrics", seconds=60)
    machines.kill(1)
    assert machines.agents[0].wait(timeout=60) != 0  # gloo misses the other machine
    wait_for(lambda: not delivery_processes(machines.folders[0]), "everything is delivered")

    (run,) = runs_of(client, tracker)
    assert (run.info.status, "tracking_callbacks.error" in run.data.tags) == ("FAILED", True)
    root = machines.folders[1] / ".tracking_callbacks"
    assert len(pending_runs(JournalRoot(root))) == 1
    code = f"from tracking_callbacks.cli import main; main(['sync', '--tracking-uri', {server.uri!r}])"
    done = run_script(code, cwd=machines.folders[1])
    assert done.returncode == 0, done.stderr
    assert not pending_runs(JournalRoot(root))
    (again,) = runs_of(client, tracker)
    assert again.info == run.info
