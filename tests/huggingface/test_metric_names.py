from __future__ import annotations

import pytest

from tracking_callbacks.huggingface.metric_names import evaluation_prefix, grouped


def test_the_training_loop_logs_to_train() -> None:
    logs = {"loss": 0.5, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.5}

    assert grouped(logs) == {
        "train/loss": 0.5,
        "train/grad_norm": 1.5,
        "train/learning_rate": 1e-3,
        "train/epoch": 0.5,
    }


def test_the_summary_does_not_add_a_point_to_the_loss_curve() -> None:
    logs = {
        "train_runtime": 3.0,
        "train_samples_per_second": 10.0,
        "train_loss": 0.4,
        "total_flos": 7.0,
        "epoch": 2.0,
    }

    assert grouped(logs) == {
        "train/runtime": 3.0,
        "train/samples_per_second": 10.0,
        "train/mean_loss": 0.4,
        "train/total_flos": 7.0,
        "train/epoch": 2.0,
    }


@pytest.mark.parametrize(
    ("prefix", "group"),
    [
        ("eval", "eval"),
        ("test", "test"),
        ("eval_news", "eval/news"),
        ("test_a_b", "test/a_b"),
        ("holdout", "holdout"),
    ],
)
def test_an_evaluation_is_grouped_under_its_prefix(prefix: str, group: str) -> None:
    logs = {
        f"{prefix}_loss": 0.3,
        f"{prefix}_accuracy": 0.9,
        f"{prefix}_runtime": 1.0,
        f"{prefix}_samples_per_second": 5.0,
        "epoch": 1.0,
    }

    assert evaluation_prefix(logs) == prefix
    assert grouped(logs) == {
        f"{group}/loss": 0.3,
        f"{group}/accuracy": 0.9,
        f"{group}/runtime": 1.0,
        f"{group}/samples_per_second": 5.0,
    }


def test_a_users_own_eval_value_is_grouped_without_run_times() -> None:
    assert grouped({"eval_bleu": 31.0, "my_value": 2}) == {"eval/bleu": 31.0, "train/my_value": 2}


def test_a_users_own_run_time_does_not_become_a_prefix() -> None:
    logs = {"eval_runtime": 1.0, "eval_samples_per_second": 5.0, "eval_decode_runtime": 0.5}

    assert grouped(logs)["eval/decode_runtime"] == 0.5
