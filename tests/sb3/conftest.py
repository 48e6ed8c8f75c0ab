"""Fixtures for the tests of the SB3 callback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from markets import Store
from mlflow import MlflowClient

from tracking_callbacks import MLflowTracker


@pytest.fixture
def store(tracker: MLflowTracker, client: MlflowClient) -> Store:
    return Store(tracker, client)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
