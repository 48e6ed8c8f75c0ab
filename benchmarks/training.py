"""Training runs that one of the contenders tracks; they run in fresh processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from typing import Any

from benchmarks.bare_sender import sending
from benchmarks.timing import Stopwatch, percentile

__all__ = ["train_bert", "train_example", "train_ppo"]

PROJECT = "benchmark"
FIRST_STEPS = 50
_SB3_HOOKS = ("_on_training_start", "_on_step", "_on_rollout_start", "_on_rollout_end", "_on_training_end")


def train_bert(contender: str, uri: str, threads: int, steps: int, everything: bool = True) -> dict[str, Any]:
    """Fine-tune a tiny BERT with LoRA, logging every step, and time the steps and the tracking's hooks.

    Args:
        contender: ``untracked``, ``bare`` (untracked, next to a bare sender that starts with the training), ``ours`` or
            ``transformers`` (its own ``MLflowCallback``).
        uri: The store.
        threads: Number of torch threads; 0 leaves it to torch.
        steps: Number of steps.
        everything: Our package records everything that it can record automatically.
    """
    os.environ["MLFLOW_TRACKING_URI"] = uri
    os.environ["MLFLOW_EXPERIMENT_NAME"] = PROJECT
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    class StepClock(TrainerCallback):
        """Notes when each step starts, so that the time between two starts is one step with all its logging."""

        def __init__(self) -> None:
            self.train_began = 0.0
            self.begins: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begins.append(time.perf_counter())

    if threads:
        torch.set_num_threads(threads)
    set_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    rows = [{"input_ids": [5, 6, 7, 8] * 8, "attention_mask": [1] * 32, "labels": i % 2} for i in range(256)]
    clock = StepClock()
    callback: Any = None
    if contender == "ours":
        from tracking_callbacks import MLflowTracker
        from tracking_callbacks.huggingface import MLflowTrainerCallback

        callback = MLflowTrainerCallback(MLflowTracker(record=everything), log_model=False)
    elif contender == "transformers":
        import mlflow

        mlflow.MlflowClient().search_experiments()  # the callback must not pay for the import and the tables
    trainer = Trainer(
        get_peft_model(BertForSequenceClassification(config), lora),
        TrainingArguments(
            "out",
            max_steps=steps,
            logging_steps=1,
            per_device_train_batch_size=8,
            report_to="mlflow" if contender == "transformers" else "none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=rows,
        callbacks=[clock, *([callback] if callback else [])],
    )
    if contender == "transformers":
        from transformers.integrations import MLflowCallback

        callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, MLflowCallback))
    hooks = Stopwatch()
    if callback is not None:
        hooks.time_methods(callback, _own_hooks(type(callback), TrainerCallback))
    # 200 steps a second, each with four points.
    with sending(uri, 800) if contender == "bare" else contextlib.nullcontext():
        spent, began = time.thread_time(), time.perf_counter()
        trainer.train()
        train_s, cpu_s = time.perf_counter() - began, time.thread_time() - spent
    begin_wall, begin_cpu = hooks.first.get("on_train_begin", (0.0, 0.0))
    result = {
        "train_s": train_s,
        "cpu_s": cpu_s,
        "hooks_s": hooks.wall,
        "hooks_cpu_s": hooks.cpu,
        "hooks_percent": 100 * hooks.wall / train_s,
        "begin_ms": 1000 * begin_wall,
        "begin_cpu_ms": 1000 * begin_cpu,
        "to_first_step_ms": 1000 * (clock.begins[0] - began),
    } | _of_steps(clock.begins)
    if contender == "ours":
        began = time.perf_counter()
        assert callback.run.flush(600).complete
        result |= {"flush_s": time.perf_counter() - began}
    return result


def _of_steps(begins: list[float]) -> dict[str, float]:
    steps = [1000 * (after - before) for before, after in itertools.pairwise(begins)]
    return {
        "step_p50_ms": percentile(steps, 50),
        "step_p99_ms": percentile(steps, 99),
        "first_steps_s": sum(steps[:FIRST_STEPS]) / 1000,
        "first_quarter_s": sum(steps[: len(steps) // 4]) / 1000,
    }


def _own_hooks(kind: type, base: type) -> list[str]:
    """Return the hooks that a callback overrides."""
    return [name for name in dir(kind) if name.startswith("on_") and getattr(kind, name) is not getattr(base, name)]


def train_example(name: str, examples: str) -> dict[str, Any]:
    """Run one of the demo's training scripts completely, and time its callback at the start and at the end.

    Args:
        name: ``sentiment`` or ``trading``.
        examples: The folder of the example scripts.
    """
    import sys
    from pathlib import Path

    from tracking_callbacks import MLflowTracker, Recording

    sys.path.insert(0, examples)
    tracker = MLflowTracker(experiment_name=PROJECT, record=Recording(sample_rows=True, system_metrics=True))
    whole, saving = Stopwatch(), Stopwatch()
    callback: Any
    if name == "sentiment":
        import train_sentiment_model as example
        from tracking_callbacks.huggingface import MLflowTrainerCallback as Callback

        begin, end = "on_train_begin", "on_train_end"
        saving.time_methods(Callback, ["_save_model"])
        whole.time_methods(Callback, [begin, end])
        callback = example.train(
            tracker, data=example.DATA_FOLDER, output_dir=Path("output"), epochs=2.0, learning_rate=1e-3, seed=42
        )
    else:
        import train_rl_agent as example
        from tracking_callbacks.sb3 import MLflowSB3Callback as Callback

        begin, end = "_on_training_start", "_on_training_end"
        saving.time_methods(Callback, ["_save_model"])
        whole.time_methods(Callback, [begin, end])
        callback = example.train(tracker, 80_000, 0)
    model_ms = 1000 * saving.wall
    assert callback.run.flush(600).complete
    return {
        "begin_ms": 1000 * whole.first[begin][0],
        "end_ms": 1000 * whole.first[end][0] - model_ms,
        "model_ms": model_ms,
    }


def train_ppo(contender: str, uri: str, envs: int, rollout: int, steps: int, timed: bool = False) -> dict[str, Any]:
    """Train PPO on CartPole and return the steps per second of ``learn()``.

    Args:
        contender: ``untracked``, ``bare`` (untracked, next to a bare sender), ``ours``, ``docs`` (the MLflow writer of
            SB3's documentation) or ``wandb``.
        uri: The store.
        envs: Number of environments.
        rollout: Steps of each environment between two updates, each of which dumps the logger.
        steps: Steps of all environments together.
        timed: Time our hooks, which lengthens each call by a microsecond.
    """
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import KVWriter, Logger

    class PerKey(KVWriter):
        """One request per key, as in the MLflow example of SB3's documentation."""

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
            import mlflow

            for key, value in sorted(key_values.items()):
                if "mlflow" not in (key_excluded.get(key) or ()) and isinstance(value, (int, float)):
                    mlflow.log_metric(key, value, step)

    class PerDump(KVWriter):
        """One ``wandb.log`` per dump."""

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
            import wandb

            wandb.log(dict(key_values), step=step)

    torch.set_num_threads(1)
    agent = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", envs, seed=0),
        n_steps=rollout,
        batch_size=256,
        n_epochs=10,
        seed=0,
        device="cpu",
    )
    callback: Any = None
    hooks = Stopwatch()
    writers: list[KVWriter] = []
    finish: Any = None
    with contextlib.ExitStack() as stack:
        if contender == "ours":
            from tracking_callbacks import MLflowTracker
            from tracking_callbacks.sb3 import MLflowSB3Callback
            from tracking_callbacks.sb3.run_writer import RunWriter

            callback = MLflowSB3Callback(MLflowTracker(uri, PROJECT), log_model=False)
            if timed:
                hooks.time_methods(callback, _SB3_HOOKS)
                hooks.time_methods(RunWriter, ["write"])
        elif contender == "bare":
            stack.enter_context(sending(uri, 250))  # ours are some 3 000 points in twelve seconds
        elif contender == "docs":
            import mlflow

            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(PROJECT)
            stack.enter_context(mlflow.start_run())
            writers = [PerKey()]
        elif contender == "wandb":
            import wandb

            finish = wandb.init(project=PROJECT, mode="offline").finish
            writers = [PerDump()]
        agent.set_logger(Logger(None, writers))
        spent, began = time.thread_time(), time.perf_counter()
        agent.learn(steps, callback=callback)
        learn_s, cpu_s = time.perf_counter() - began, time.thread_time() - spent
    began = time.perf_counter()
    if contender == "ours":
        assert callback.run.flush(600).complete
    elif finish is not None:
        finish()
    return {
        "fps": agent.num_timesteps / learn_s,
        "learn_s": learn_s,
        "cpu_s": cpu_s,
        "close_s": time.perf_counter() - began,
    } | ({"hooks_percent": 100 * hooks.wall / learn_s} if timed else {})
