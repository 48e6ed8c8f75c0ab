"""Fixtures of the tests of delivery."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def mlmodel(tmp_path: Path) -> Path:
    """A model that doubles its input, saved in MLflow's pyfunc flavor."""
    import mlflow

    class Doubler(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[float]) -> list[float]:
            return [2 * value for value in model_input]

    mlflow.pyfunc.save_model(tmp_path / "saved", python_model=Doubler(), pip_requirements=["mlflow"])
    return tmp_path / "saved"
