"""A small training with tracking, run in a process of its own: ``python training.py <kind> <plan as JSON>``.

It writes beside itself a ledger of what tracking has accepted, and how long each hook or call has taken.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tracking_callbacks import MLflowTracker, Run
from tracking_callbacks.records import Artifact, Model, Record, encode
from tracking_callbacks.session import Session

LEDGER, TIMES, WEIGHTS, STOP = "ledger.jsonl", "times.jsonl", "weights.json", "stop"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training does.

    Attributes:
        steps: Number of steps; it ends earlier when the file `STOP` appears in its folder.
        pause: Seconds that a step takes beside its own work.
        flush_timeout: The tracker's.
        model_name: Registered name of the model; None: no model is logged.
        mlmodel: A saved model for the kind ``core``, which has none of its own.
        compare: Train without tracking first, from the same seed.
    """

    steps: int = 30
    pause: float = 0.0
    flush_timeout: float = 60.0
    delivery_grace: float = 600.0
    model_name: str | None = None
    mlmodel: str | None = None
    compare: bool = False


def main(kind: str, plan: Plan) -> None:
    train = {"core": train_core, "huggingface": train_huggingface, "sb3": train_sb3}[kind]
    tracker = MLflowTracker(flush_timeout=plan.flush_timeout, delivery_grace=plan.delivery_grace)
    weights = [train(plan, None)] if plan.compare else []
    keep_ledger()
    weights.append(train(plan, tracker))
    Path(WEIGHTS).write_text(json.dumps(weights))


# -- the ledger ------------------------------------------------------------------------------------------------------


def keep_ledger() -> None:
    """Write down each record that a journal has taken, with the digests of the files that it names."""
    ledger = open(LEDGER, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends
    append = Session.append

    def append_and_note(session: Session, record: Record) -> None:
        files = {}
        if isinstance(record, (Artifact, Model)):
            staged = session.folder.path / record.staged
            files = {path.relative_to(staged.parent).as_posix(): digest(path) for path in files_of(staged)}
        dropped = session.dropped
        append(session, record)
        if session.dropped == dropped:
            ledger.write(json.dumps({"record": encode(record).hex(), "files": files}) + "\n")

    Session.append = append_and_note


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else [inner for inner in sorted(path.rglob("*")) if inner.is_file()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def time_methods(owner: type, names: list[str]) -> None:
    """Write down the seconds that each call of the methods takes."""
    times = open(TIMES, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends

    def timed(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                times.write(json.dumps([name, time.perf_counter() - started]) + "\n")

        return call

    for name in names:
        setattr(owner, name, timed(getattr(owner, name), name))


# -- the trainings ---------------------------------------------------------------------------------------------------


def paced(plan: Plan) -> Iterator[int]:
    """Yield the steps, each after the time that it takes, until the training is told to stop."""
    for step in range(plan.steps):
        if stopped(plan):
            return
        yield step


def stopped(plan: Plan) -> bool:
    """Let a step's time pass, and return whether the training shall stop."""
    time.sleep(plan.pause)
    return Path(STOP).exists()


def train_core(plan: Plan, tracker: MLflowTracker | None) -> str:
    chance = random.Random(0)
    weights = [0.0] * 8
    if tracker is None:
        for _ in paced(plan):
            learn(weights, chance)
        return repr(weights)
    time_methods(Run, ["log_metrics", "log_params", "set_tags", "log_text", "log_dataset", "log_model", "end"])
    time_methods(MLflowTracker, ["start_run"])
    with tracker.start_run("core", tags={"team": "faults"}) as run:
        run.log_params({"lr": 0.1, "seed": 0, "schedule": {"kind": "cosine"}})
        run.log_dataset("numbers", size=8, source="memory", context="training")
        for step in paced(plan):
            run.log_metrics({"loss": learn(weights, chance), "progress": step / plan.steps}, step=step)
            if step in (0, 1, 2):
                run.log_text(f"sample {step} ✓", f"samples/{step}.txt")
        run.set_tags({"outcome": "trained"})
        if plan.mlmodel is not None and plan.model_name is not None:
            run.log_model(plan.mlmodel, registered_model_name=plan.model_name, aliases=["champion"])
    return repr(weights)


def learn(weights: list[float], chance: random.Random) -> float:
    weights[:] = [weight * 0.9 + chance.gauss(0, 0.1) for weight in weights]
    return sum(weight**2 for weight in weights)


def train_huggingface(plan: Plan, tracker: MLflowTracker | None) -> str:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from tracking_callbacks.huggingface import MLflowTrainerCallback

    class Pace(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= stopped(plan)

    torch.set_num_threads(1)
    set_seed(0)
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=4, max_position_embeddings=8, **sizes))
    rows = [{"input_ids": [2 + n % 2, 1], "attention_mask": [1, 1], "labels": n % 2} for n in range(64)]
    callbacks: list[TrainerCallback] = [Pace()]
    if tracker is not None:
        time_methods(MLflowTrainerCallback, ["on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end"])
        callbacks.append(
            MLflowTrainerCallback(
                tracker,
                tags={"team": "faults"},
                log_model="auto" if plan.model_name else False,
                registered_model_name=plan.model_name,
                aliases=["champion"] if plan.model_name else (),
            )
        )
    arguments = TrainingArguments(
        output_dir="output",
        max_steps=plan.steps,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        eval_dataset=rows[:8],  # type: ignore[arg-type]
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    return tensors_digest(model.state_dict())


def train_sb3(plan: Plan, tracker: MLflowTracker | None) -> str:
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    from tracking_callbacks.sb3 import MLflowSB3Callback

    class Pace(BaseCallback):
        def _on_step(self) -> bool:
            return not stopped(plan)

    torch.set_num_threads(1)
    callbacks: list[BaseCallback] = [Pace()]
    if tracker is not None:
        hooks = ["_on_training_start", "_on_rollout_start", "_on_step", "_on_rollout_end", "_on_training_end"]
        time_methods(MLflowSB3Callback, hooks)
        callbacks.append(
            MLflowSB3Callback(
                tracker,
                tags={"team": "faults"},
                log_model=bool(plan.model_name),
                registered_model_name=plan.model_name,
                aliases=["champion"] if plan.model_name else (),
            )
        )
    agent = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, policy_kwargs={"net_arch": [4]}, seed=0
    )
    agent.learn(plan.steps, callback=callbacks)
    return tensors_digest(agent.policy.state_dict())


def tensors_digest(tensors: dict[str, Any]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return content.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], Plan(**json.loads(sys.argv[2])))
