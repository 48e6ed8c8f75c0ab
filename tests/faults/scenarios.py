"""Training programs for the fault tests: the bare tracker, a tiny BERT, a tiny PPO. They run in `trainer.py`."""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.ledger import LedgerWriter, keep_ledger

_never = threading.Event()

Train = Callable[..., str]
InStep = Callable[[int], bool]

STOP = "stop"  # a file of this name in the trainer's folder stops its training
TROUBLE_STEP = 3
TAGS = {"team": "faults"}
LONG_TEXT = "ü" + 6000 * "x"
ODD_METRICS = {
    "prêt 😀": 1.0625,
    300 * "k": 2.0625,
    300 * "k" + "2": 3.0625,
    "a?": 4.0625,
    "a!": 5.0625,
    "/a//b": 6.0625,
    "..": 7.0625,
    "not a number": math.nan,
    "up": math.inf,
    "down": -math.inf,
}
MLMODEL = f"""
flavors:
  python_function: {{loader_module: {__name__}, data: weights.bin, python_version: {sys.version.split()[0]}}}
"""


@dataclass(frozen=True)
class Plan:
    """What a trainer does.

    Attributes:
        scenario: Which of `BUILDERS`.
        ledger: The path to write the ledger to.
        steps: Number of steps; it ends earlier when the file `STOP` appears.
        pace: Seconds that a step takes in addition to its own work.
        trouble: What happens in step 3.
        caught: The user's loop catches what training raises, and trains again.
        continued: Training continues a second time, with another learning rate and more steps.
        odd: Log `ODD_METRICS` in step 3, and have a setting that is too long for a param.
        compare: Train without tracking first, from the same seed.
        model: Registered name of the model; without one the model is only logged.
        tracker: Arguments of `MLflowTracker`.
        flush: Seconds that the core flushes for after its run; 0 leaves that to the exit.
        arguments: `TrainingArguments` in addition to the usual ones.
        subprocesses: PPO's environments are processes.
    """

    scenario: str
    ledger: str
    steps: int | None = None
    pace: float = 0.0
    trouble: str | None = None
    caught: bool = False
    continued: bool = False
    odd: bool = False
    compare: bool = False
    model: str | None = None
    tracker: Mapping[str, Any] = field(default_factory=dict)
    flush: float = 120.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    subprocesses: bool = False

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases of the registered model."""
        return ("champion",) if self.model else ()


def run(plan: Plan) -> None:
    """Train as planned."""
    ledger = keep_ledger(Path(plan.ledger))
    atexit.register(ledger.mark, "drained")  # the first callback registered is the last one called
    build = BUILDERS[plan.scenario]
    if plan.compare:
        ledger.mark(f"untracked weights {build(plan, ledger, tracked=False)()}")
    train = build(plan, ledger, tracked=True)
    if plan.caught:
        try:
            train()
        except RuntimeError as error:
            ledger.mark(str(error))
    ledger.mark(f"weights {train()}")
    if plan.continued:
        train(continues=True)
    ledger.mark("trained")  # the last line of the user's program


def steps(plan: Plan, ledger: LedgerWriter) -> InStep:
    """Return a function that causes the trouble once, in step 3, and returns after every step whether to go on."""
    work, planned = threading.Event(), [plan.trouble]

    def in_step(step: int) -> bool:
        work.wait(plan.pace)
        if step == TROUBLE_STEP and planned:
            match planned.pop():
                case "exception":
                    raise RuntimeError("diverged")
                case "sys.exit(3)":
                    sys.exit(3)
                case "os._exit(1)":
                    os._exit(1)
                case "fork":
                    if (child := os.fork()) == 0:
                        sys.exit(
                            0
                        )  # as with a forgotten `if __name__`: it runs the exits of training's blocks and hooks
                    os.waitpid(child, 0)
                case "pause":
                    ledger.mark("paused")
                    # Not `signal.pause`: a signal that comes just before it waits is lost, and it waits for ever.
                    while not _never.wait(0.1):
                        pass
        return not os.path.exists(STOP)

    return in_step


def core(plan: Plan, ledger: LedgerWriter, *, tracked: bool) -> Train:
    """Return a function that logs every kind of record with the tracker alone, without training."""
    from tracking_callbacks import MLflowTracker, Run

    if not tracked:
        return lambda: "none"
    ledger.time_calls(MLflowTracker, "start_run")
    ledger.time_calls(Run, "end")
    tracker, in_step = MLflowTracker(**plan.tracker), steps(plan, ledger)

    def train() -> str:
        with tracker.start_run("core", tags=TAGS) as run:
            log_every_kind(run, plan, ledger, in_step)
        ledger.mark("trained")
        if plan.flush:
            run.flush(plan.flush)
        return "none"

    return train


class StoredWeights:
    """The core's model, as MLflow loads it."""

    def __init__(self, weights: bytes) -> None:
        self.weights = weights

    def predict(self, rows: list[float]) -> list[float]:
        """Return the number of weights for each row."""
        return [float(len(self.weights))] * len(rows)


def _load_pyfunc(path: str) -> StoredWeights:
    return StoredWeights(Path(path).read_bytes())


def log_every_kind(run: Any, plan: Plan, ledger: LedgerWriter, in_step: InStep) -> None:
    """Log a run's start, its steps, and its model."""
    count = plan.steps or 600
    run.log_params({"lr": 0.1, "layers": [16, 16]})
    run.log_dataset("sentences", size=18, context="training")
    run.log_dict({"lr": 0.1}, "config/settings.json")
    for step in range(count):
        run.log_metrics({"loss": 1 / (step + 1), "accuracy": step / count}, step=step)
        if step % 100 == 0:
            run.set_tags({"progress": step})
            run.log_text(f"step {step} ✓", f"notes/{step}.txt")
        if not in_step(step):
            break
    ledger.mark("saving")
    model = Path(f"saved-{os.getpid()}")
    model.mkdir(exist_ok=True)
    (model / "MLmodel").write_text(MLMODEL)
    (model / "weights.bin").write_bytes(os.urandom(1 << 20))
    run.log_artifact(model / "weights.bin", "weights")
    run.log_artifacts(model, "copy")
    run.log_model(model, registered_model_name=plan.model, aliases=plan.aliases)
    run.log_metrics({"final": 1.0}, step=count)


def huggingface(plan: Plan, ledger: LedgerWriter, *, tracked: bool) -> Train:
    """Return the training of a tiny BERT with our callback: twelve steps unless the plan says otherwise."""
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
    from transformers.utils.logging import disable_progress_bar

    from tracking_callbacks import MLflowTracker
    from tracking_callbacks.huggingface import MLflowTrainerCallback

    disable_progress_bar()
    set_seed(0)
    words = ["[PAD]", "[UNK]", "good", "bad", "film", "book"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["good film", "bad film", "good book", "bad book"] * 4
    sentences = [{**tokenizer(text), "labels": int(text.startswith("good"))} for text in texts]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    in_step = steps(plan, ledger)

    class InEveryStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if plan.odd and state.global_step == TROUBLE_STEP:
                trainer.log(dict(ODD_METRICS))
            control.should_training_stop |= not in_step(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ledger.mark("saving")

    callbacks: list[TrainerCallback] = [InEveryStep()]
    if tracked:
        hooks = ("on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end")
        ledger.time_calls(MLflowTrainerCallback, *hooks)
        tracker = MLflowTracker(**plan.tracker)
        callbacks.append(
            MLflowTrainerCallback(tracker, tags=TAGS, registered_model_name=plan.model, aliases=plan.aliases)
        )
    arguments = {
        "output_dir": "output",
        "max_steps": plan.steps or 12,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    config = BertConfig(vocab_size=len(words), max_position_embeddings=8, **shape)
    if plan.odd:
        config.origin = LONG_TEXT
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(**arguments | plan.arguments),
        train_dataset=sentences,
        processing_class=tokenizer,
        callbacks=callbacks,
    )

    def train(*, continues: bool = False) -> str:
        if continues:
            trainer.args.learning_rate /= 2
            trainer.args.max_steps *= 2
        trainer.train(resume_from_checkpoint=continues)
        return digest(trainer.model.state_dict())

    return train


def sb3(plan: Plan, ledger: LedgerWriter, *, tracked: bool) -> Train:
    """Return the training of a tiny PPO with our callback: eight rollouts unless the plan says otherwise."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import FlattenExtractor
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from tracking_callbacks import MLflowTracker
    from tracking_callbacks.sb3 import MLflowSB3Callback

    class NamedExtractor(FlattenExtractor):
        def __init__(self, observation_space: Any, name: str) -> None:
            super().__init__(observation_space)

    rollout = 32
    in_step = steps(plan, ledger)

    class InEveryRollout(BaseCallback):
        def _on_step(self) -> bool:
            if plan.odd and self.num_timesteps == rollout * TROUBLE_STEP:
                for key, value in ODD_METRICS.items():
                    self.logger.record(key, value)
            return bool(self.num_timesteps % rollout) or in_step(self.num_timesteps // rollout)

        def _on_training_end(self) -> None:
            ledger.mark("saving")

    callbacks: list[BaseCallback] = [InEveryRollout()]
    if tracked:
        hooks = ("_on_training_start", "_on_rollout_start", "_on_step", "_on_rollout_end", "_on_training_end")
        ledger.time_calls(MLflowSB3Callback, *hooks)
        tracker = MLflowTracker(**plan.tracker)
        callbacks.append(MLflowSB3Callback(tracker, tags=TAGS, registered_model_name=plan.model, aliases=plan.aliases))
    env = (
        make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
        if plan.subprocesses
        else "CartPole-v1"
    )
    network: dict[str, Any] = {"net_arch": [4]}
    if plan.odd:
        network |= {"features_extractor_class": NamedExtractor, "features_extractor_kwargs": {"name": LONG_TEXT}}
    sizes = {"n_steps": rollout, "batch_size": rollout, "n_epochs": 1}
    agent = PPO("MlpPolicy", env, policy_kwargs=network, device="cpu", seed=0, **sizes)

    def train(*, continues: bool = False) -> str:
        if continues:
            agent.learning_rate /= 2
            agent._setup_lr_schedule()
        timesteps = rollout * (plan.steps or 8)
        agent.learn(timesteps, callback=callbacks, reset_num_timesteps=not continues)
        return digest(agent.policy.state_dict())

    return train


def digest(tensors: Mapping[str, Any]) -> str:
    """Return a digest of a model's weights."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return content.hexdigest()


BUILDERS: dict[str, Callable[..., Train]] = {"core": core, "huggingface": huggingface, "sb3": sb3}
