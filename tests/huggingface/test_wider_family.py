"""The callback works unchanged with ``Seq2SeqTrainer`` and TRL's ``SFTTrainer``."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from mlflow import MlflowClient
from peft import LoraConfig
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import SFTConfig, SFTTrainer

from huggingface.reading import finished_run, points
from huggingface.vocabulary import WORDS
from tracking_callbacks import MLflowTracker
from tracking_callbacks.huggingface import MLflowTrainerCallback

TEXTS = ["good film", "awful book play"]
SETTINGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
LOAD = """
import json, sys, mlflow, torch
texts, loaded = json.loads(sys.argv[3]), {}
for name, kind in ((sys.argv[1], "causal"), (sys.argv[2], "encoder-decoder")):
    parts = mlflow.transformers.load_model(f"models:/{name}@champion", return_type="components")
    model, inputs = parts["model"].eval(), parts["tokenizer"](texts[0], return_tensors="pt")
    ids = {"input_ids": inputs["input_ids"]} | ({"decoder_input_ids": inputs["input_ids"]} if kind != "causal" else {})
    with torch.no_grad():
        loaded[kind] = model(**ids).logits.tolist()
    answers = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(texts)
    loaded[f"{kind} answers"] = [str(answer) for answer in answers]
print(json.dumps(loaded))
"""


@pytest.fixture
def generating(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with an end of text."""
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = "[SEP]"
    return ending


def causal_champion(
    tracker: MLflowTracker, tokenizer: PreTrainedTokenizerFast, name: str, folder: Path
) -> tuple[MLflowTrainerCallback, SFTTrainer]:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "llama")
    rows = Dataset.from_dict({"text": [f"{adjective} {noun}" for adjective in WORDS[:6] for noun in WORDS[6:]]})
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, aliases=["champion"])
    trainer = SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(folder / "llama"),
        args=SFTConfig(output_dir=str(folder / "sft"), max_length=8, bf16=False, **SETTINGS),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
        callbacks=[callback],
    )
    trainer.train()
    shutil.rmtree(folder / "llama")
    return callback, trainer


def encoder_decoder_champion(
    tracker: MLflowTracker, tokenizer: PreTrainedTokenizerFast, name: str, folder: Path
) -> tuple[MLflowTrainerCallback, Seq2SeqTrainer]:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = T5ForConditionalGeneration(
        T5Config(
            **shape,
            vocab_size=len(tokenizer),
            eos_token_id=end,
            pad_token_id=padding,
            decoder_start_token_id=padding,
        )
    )
    texts = [f"{adjective} {noun}" for adjective in WORDS[:6] for noun in WORDS[6:]]
    rows = Dataset.from_dict(
        {
            "input_ids": tokenizer(texts)["input_ids"],
            "labels": tokenizer([text.split()[0] for text in texts])["input_ids"],
        }
    )
    callback = MLflowTrainerCallback(tracker, registered_model_name=name, aliases=["champion"])
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder / "seq2seq"), predict_with_generate=True, generation_max_length=6, **SETTINGS
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=lambda prediction: {"longest": float(prediction.predictions.shape[-1])},
        callbacks=[callback],
    )
    trainer.train()
    trainer.predict(rows)
    return callback, trainer


def test_seq2seq_and_sft_runs_are_complete_and_their_models_load_in_a_fresh_process(
    tracker: MLflowTracker, server, client: MlflowClient, generating: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    names = (f"sft-{tmp_path.name}", f"t5-{tmp_path.name}")
    sft, sft_trainer = causal_champion(tracker, generating, names[0], tmp_path)
    seq2seq, seq2seq_trainer = encoder_decoder_champion(tracker, generating, names[1], tmp_path)
    runs = [finished_run(callback) for callback in (sft, seq2seq)]
    inputs = generating(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        causal = sft_trainer.model.eval()(input_ids=inputs).logits
        decoded = seq2seq_trainer.model.eval()(input_ids=inputs, decoder_input_ids=inputs).logits

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *names, json.dumps(TEXTS)],
        env=os.environ | {"MLFLOW_TRACKING_URI": server.uri},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])

    for run, trainer in zip(runs, (sft_trainer, seq2seq_trainer), strict=True):
        history = trainer.state.log_history
        assert client.get_run(run.run_id).info.status == "FINISHED"
        for key, name in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
            assert points(client, run, name) == [(entry["step"], entry[key]) for entry in history if key in entry]
    stored = [client.get_run(run.run_id).data for run in runs]
    assert (stored[0].params["lora.r"], stored[0].params["max_length"]) == ("4", "8")
    assert stored[0].tags["model_type"] == "llama"
    assert "train/mean_token_accuracy" in stored[0].metrics
    assert (stored[1].params["predict_with_generate"], stored[1].tags["model_type"]) == ("True", "t5")
    assert {"eval/longest", "test/longest", "test/loss"} <= set(stored[1].metrics)
    assert [client.get_model_version_by_alias(name, "champion").tags["form"] for name in names] == ["merged", "full"]
    assert (torch.tensor(loaded["causal"]) - causal).abs().max() <= 1e-5
    assert (torch.tensor(loaded["encoder-decoder"]) - decoded).abs().max() == 0
    encoded = generating(TEXTS, return_tensors="pt", padding=True)
    answers = seq2seq_trainer.model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    assert loaded["encoder-decoder answers"] == generating.batch_decode(answers, skip_special_tokens=True)
    assert all(answer.startswith(text) for text, answer in zip(TEXTS, loaded["causal answers"], strict=True))
