"""Programs that speak MLflow and know nothing of the plugin: ``python unchanged.py NAME STEPS PACE``.

Each logs to the experiment ``unchanged`` of ``MLFLOW_TRACKING_URI``, waits for `PACE` seconds after a step, and prints
``step N`` once the calls of step N have returned.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXPERIMENT = "unchanged"


def done(step: int, pace: float) -> None:
    """Say that a step is over, and wait."""
    sys.stdout.write(f"step {step}\n")
    sys.stdout.flush()
    time.sleep(pace)


def fluent(steps: int, pace: float) -> None:
    """A run with every ``log_*`` function, and a nested run every tenth step."""
    import mlflow
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name="outer", run_id=os.environ.get("JOIN")) as run:
        sys.stdout.write(f"run {run.info.run_id}\n")
        worker = os.environ.get("WORKER", "")
        mlflow.log_params({f"lr{worker}": 0.1, f"text{worker}": "ü"})
        mlflow.set_tags({f"team{worker}": "a"})
        mlflow.log_text("some text", f"texts/t{worker}.txt")
        mlflow.log_dict({"a": 1}, f"d{worker}.json")
        mlflow.log_figure(Figure(), f"f{worker}.png")
        mlflow.log_image(np.zeros((4, 4), dtype=np.uint8), f"i{worker}.png")
        mlflow.log_table({"x": [1, 2]}, f"table{worker}.json")
        Path("file.txt").write_text("content")
        mlflow.log_artifact("file.txt", f"files{worker}")
        Path("file.txt").write_text("changed after the call")
        mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"x": [1.0]}), name=f"frame{worker}"), context="training")
        for step in range(1, steps + 1):
            mlflow.log_metric(f"loss{worker}", 1 / step, step=step)
            mlflow.log_metrics({f"a{worker}": step, f"b{worker}": -step}, step=step)
            if step % 10 == 0:
                with mlflow.start_run(run_name=f"inner {worker}{step}", nested=True):
                    mlflow.log_metric("step", step)
                    mlflow.log_text(str(step), "step.txt")
            done(step, pace)


def transformers(steps: int, pace: float) -> None:
    """A tiny BERT with transformers' own callback, which also logs checkpoints."""
    os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "1"
    os.environ["MLFLOW_EXPERIMENT_NAME"] = EXPERIMENT
    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    class Pace(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                done(state.global_step, pace)

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    row = {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(1)}
    settings = {"max_steps": steps, "logging_steps": 1, "save_steps": max(steps // 2, 1), "use_cpu": True}
    arguments = TrainingArguments("output", report_to=["mlflow"], run_name="bert", disable_tqdm=True, **settings)
    Trainer(BertForSequenceClassification(config), arguments, train_dataset=[row] * 64, callbacks=[Pace()]).train()


def sklearn(steps: int, pace: float) -> None:
    """Fits with autologging, each of which registers a version."""
    import mlflow
    from sklearn.linear_model import LinearRegression

    mlflow.set_experiment(EXPERIMENT)
    mlflow.sklearn.autolog(registered_model_name="fitted")
    for step in range(1, steps + 1):
        with mlflow.start_run(run_name=f"fit {step}"):
            LinearRegression().fit([[0.0], [1.0]], [0.0, float(step)])
        done(step, pace)


def _boosted(flavor: str, steps: int, pace: float) -> None:
    import importlib

    import mlflow
    import numpy as np

    library = importlib.import_module(flavor)
    mlflow.set_experiment(EXPERIMENT)
    getattr(mlflow, flavor).autolog(registered_model_name="boosted")
    features, labels = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    for step in range(1, steps + 1):
        with mlflow.start_run(run_name=f"fit {step}"):
            if flavor == "xgboost":
                data = library.DMatrix(features, labels)
                library.train({"objective": "binary:logistic"}, data, 5, evals=[(data, "train")], verbose_eval=False)
            else:
                data = library.Dataset(features, labels)
                library.train({"objective": "binary", "verbose": -1}, data, 5, valid_sets=[data])
        done(step, pace)


def xgboost(steps: int, pace: float) -> None:
    """Boosted trees with autologging."""
    _boosted("xgboost", steps, pace)


def lightgbm(steps: int, pace: float) -> None:
    """Boosted trees with autologging."""
    _boosted("lightgbm", steps, pace)


def lightning(steps: int, pace: float) -> None:
    """Lightning's own logger, with checkpoints."""
    import lightning as pl
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.layer(batch).pow(2).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            if self.global_step:  # what the step before has logged is at the logger by now
                done(self.global_step, pace)

    logger = MLFlowLogger(EXPERIMENT, run_name="light", log_model=True, tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    trainer = pl.Trainer(
        max_steps=steps,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[ModelCheckpoint("checkpoints", every_n_train_steps=max(steps // 2, 1))],
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(64, 2), batch_size=4))


def optuna(steps: int, pace: float) -> None:
    """A study with a nested run per trial; with Optuna's own callback, where that is installed."""
    import mlflow
    from optuna import create_study, logging

    logging.set_verbosity(logging.ERROR)
    mlflow.set_experiment(EXPERIMENT)
    try:
        from optuna_integration.mlflow import MLflowCallback
    except ImportError:
        MLflowCallback = None

    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        if MLflowCallback is None:
            with mlflow.start_run(run_name=str(trial.number), nested=True):
                mlflow.log_params(trial.params)
                mlflow.log_metric("value", x)
        done(trial.number, pace)
        return x

    with mlflow.start_run(run_name="study"):
        uri = os.environ["MLFLOW_TRACKING_URI"]
        own = [] if MLflowCallback is None else [MLflowCallback(uri, "value", mlflow_kwargs={"nested": True})]
        create_study(study_name=EXPERIMENT).optimize(objective, n_trials=steps, callbacks=own)


def ray(steps: int, pace: float) -> None:
    """Ray Tune's own callback, two trials."""
    from ray import init, tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def train(config: dict[str, Any]) -> None:
        for step in range(1, steps + 1):
            tune.report({"loss": config["x"] / step})
            time.sleep(pace)

    init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    callback = MLflowLoggerCallback(os.environ["MLFLOW_TRACKING_URI"], experiment_name=EXPERIMENT, save_artifact=True)
    config = tune.RunConfig(callbacks=[callback], storage_path=os.path.abspath("ray"), verbose=0)
    tune.Tuner(train, param_space={"x": tune.grid_search([1.0, 2.0])}, run_config=config).fit()
    done(steps, 0)


PROGRAMS: dict[str, Callable[[int, float], None]] = {
    one.__name__: one for one in (fluent, transformers, sklearn, xgboost, lightgbm, lightning, optuna, ray)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PROGRAMS[sys.argv[1]](int(sys.argv[2]), float(sys.argv[3]))
