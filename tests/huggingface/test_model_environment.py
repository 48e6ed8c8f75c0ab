"""The environment file of a saved model installs, and the model predicts there: no part of this project is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from tracking_callbacks.huggingface.save_plan import plan_saving, saver_of

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"  # where torch has a build without CUDA
PREDICT = """
import json, sys, mlflow
try:
    import tracking_callbacks
except ModuleNotFoundError:
    print(json.dumps(list(mlflow.pyfunc.load_model(sys.argv[1]).predict(["good film", "awful play"])["label"])))
"""


@pytest.mark.skipif(
    "SOAK" not in os.environ, reason="installs torch and MLflow into a new environment: minutes; make soak"
)
@pytest.mark.timeout(900)
def test_the_requirements_of_a_model_install_and_suffice(
    lora_model: PeftModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save, _ = saver_of(plan_saving(lora_model, tokenizer, None), lora_model, "merged", None, "good film")
    save(tmp_path / "saved")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), "-r", "saved/requirements.txt"]
    subprocess.run(install, cwd=tmp_path, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", PREDICT, str(tmp_path / "saved")],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {"negative", "positive"}
