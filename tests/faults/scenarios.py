"""Trainings that a test puts under a fault: the bare tracker, a tiny BERT, a tiny PPO. They run in `trainer.py`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger import keep_ledger

Train = Callable[[], Any]
Trouble = Callable[[int], None]
Mark = Callable[[str], None]

CORE_STEPS, TROUBLE_STEP = 600, 3
MLMODEL = "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"


def run(plan: dict[str, Any]) -> None:
    """Carry out a training as planned.

    Args:
        plan: ``scenario``; ``ledger``, the path to write it to; ``trouble``, what happens in the training's step 3;
            ``pace``, the seconds of work in a step; ``model``, the name to register; ``caught``, whether the user's
            loop catches what the training raises and trains again; ``arguments`` of the ``Trainer``; whether PPO's
            environments are ``subprocesses``.
    """
    mark = keep_ledger(Path(plan["ledger"]))
    train = TRAININGS[plan["scenario"]](plan, mark)
    if plan.get("caught"):
        try:
            train()
        except RuntimeError as error:
            mark(str(error))
    train()
    mark("trained")


def trouble(plan: dict[str, Any], mark: Mark) -> Trouble:
    """Return a function that is called in every step and does what is planned in step 3, once."""
    work, pace, planned = threading.Event(), plan.get("pace", 0.0), [plan.get("trouble")]

    def in_step(step: int) -> None:
        work.wait(pace)
        if step != TROUBLE_STEP or not planned:
            return
        match planned.pop():
            case "exception":
                raise RuntimeError("diverged")
            case "sys.exit(3)":
                sys.exit(3)
            case "os._exit(1)":
                os._exit(1)
            case "fork":
                if (child := os.fork()) == 0:
                    sys.exit(0)  # as from a forgotten `if __name__`: the child ends the training's blocks and hooks
                os.waitpid(child, 0)
            case "pause":
                mark("paused")
                signal.pause()

    return in_step


def core(plan: dict[str, Any], mark: Mark) -> Train:
    """Return a function that logs with the tracker alone: every kind of record."""
    from tracking_callbacks import MLflowTracker

    tracker, in_step = MLflowTracker(), trouble(plan, mark)

    def train() -> None:
        with tracker.start_run("core") as run:
            _log_everything(run, plan, mark, in_step)
        mark("trained")
        run.flush(120)

    return train


def _log_everything(run: Any, plan: dict[str, Any], mark: Mark, in_step: Trouble) -> None:
    run.log_params({"lr": 0.1, "layers": [16, 16]})
    run.log_dataset("sentences", size=18, context="training")
    run.log_dict({"lr": 0.1}, "config/settings.json")
    for step in range(CORE_STEPS):
        run.log_metrics({"loss": 1 / (step + 1), "accuracy": step / CORE_STEPS}, step=step)
        if step % 100 == 0:
            run.set_tags({"progress": step})
            run.log_text(f"step {step}", f"notes/{step}.txt")
        in_step(step)
    mark("saving")
    model = Path(f"saved-{os.getpid()}")
    model.mkdir(exist_ok=True)
    (model / "MLmodel").write_text(MLMODEL)
    (model / "weights.bin").write_bytes(os.urandom(1 << 20))
    run.log_artifact(model / "weights.bin", "weights")
    run.log_artifacts(model, "copy")
    run.log_model(model, registered_model_name=plan.get("model"), aliases=["newest"] if "model" in plan else [])
    run.log_metrics({"final": 1.0}, step=CORE_STEPS)


def huggingface(plan: dict[str, Any], mark: Mark) -> Train:
    """Return the training of a tiny BERT of twelve steps, with our callback and one that makes the trouble."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from tracking_callbacks.huggingface import MLflowTrainerCallback

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "book"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["good film", "bad film", "good book", "bad book"] * 4
    sentences = [{**tokenizer(text), "labels": int(text.startswith("good"))} for text in texts]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    in_step = trouble(plan, mark)

    class Trouble(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            in_step(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark("saving")

    arguments = {
        "output_dir": "output",
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(
        model=BertForSequenceClassification(BertConfig(vocab_size=len(words), max_position_embeddings=8, **shape)),
        args=TrainingArguments(**arguments | plan.get("arguments", {})),
        train_dataset=sentences,
        processing_class=tokenizer,
        callbacks=[Trouble(), MLflowTrainerCallback(registered_model_name=plan.get("model"))],
    )
    return lambda: trainer.train()


def sb3(plan: dict[str, Any], mark: Mark) -> Train:
    """Return the training of a tiny PPO of 256 steps, with our callback and one that makes the trouble."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from tracking_callbacks.sb3 import MLflowSB3Callback

    in_step = trouble(plan, mark)

    class Trouble(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 32 == 0:
                in_step(self.num_timesteps // 32)
            return True

        def _on_training_end(self) -> None:
            mark("saving")

    network = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu"}
    env = (
        make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
        if (plan.get("subprocesses"))
        else "CartPole-v1"
    )
    agent = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, **network)
    callbacks = [Trouble(), MLflowSB3Callback(registered_model_name=plan.get("model"))]
    return lambda: agent.learn(256, callback=callbacks)


TRAININGS: dict[str, Callable[[dict[str, Any], Mark], Train]] = {"core": core, "huggingface": huggingface, "sb3": sb3}
