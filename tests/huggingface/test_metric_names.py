from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_an_evaluation_of_the_training_data_is_not_mixed_with_the_training_loop() -> None:
    logs = {"train_loss": 0.2, "train_runtime": 1.0, "train_samples_per_second": 5.0, "epoch": 1.0}

    assert grouped(logs) == {
        "eval/train/loss": 0.2,
        "eval/train/runtime": 1.0,
        "eval/train/samples_per_second": 5.0,
    }


def test_a_name_with_its_group_stays_as_it_is() -> None:
    logs = {"eval/bleu": 31.0, "train/temperature": 0.7, "rewards/chosen": 1.0}

    assert grouped(logs) == {"eval/bleu": 31.0, "train/temperature": 0.7, "train/rewards/chosen": 1.0}


def test_everything_in_an_evaluations_log_belongs_to_its_set() -> None:
    logs = {
        "eval_news_loss": 0.3,
        "eval_news_runtime": 1.0,
        "eval_news_samples_per_second": 5.0,
        "eval_rewards/chosen": 0.5,  # as trl's DPOTrainer names it, whatever the set
        "perplexity": 1.35,
        "num_input_tokens_seen": 4096,
        "epoch": 1.0,
    }

    assert grouped(logs) == {
        "eval/news/loss": 0.3,
        "eval/news/runtime": 1.0,
        "eval/news/samples_per_second": 5.0,
        "eval/news/rewards/chosen": 0.5,
        "eval/news/perplexity": 1.35,
    }


def test_the_training_loop_keeps_the_tokens_that_it_has_seen() -> None:
    assert grouped({"loss": 0.1, "num_input_tokens_seen": 4096})["train/num_input_tokens_seen"] == 4096


WORDS = st.text("ab_/", min_size=1, max_size=6)
KEYS = st.one_of(
    WORDS, st.builds("{}{}{}".format, st.sampled_from(["train", "eval", "test"]), st.sampled_from("_/"), WORDS)
)
SETS = st.sampled_from(["eval", "test", "train", "eval_a", "eval_a_b", "eval_ab", "test_a"])


@st.composite
def evaluation_logs(draw: st.DrawFn, sets: st.SearchStrategy[str] = SETS) -> tuple[str, dict[str, float]]:
    prefix = draw(sets)
    keys = draw(st.sets(KEYS, max_size=8)) | {f"{prefix}_runtime", f"{prefix}_samples_per_second"}
    keys |= {f"{prefix}_{word}" for word in draw(st.sets(WORDS, max_size=4))}
    return prefix, {key: float(number) for number, key in enumerate(sorted(keys))}


@given(st.dictionaries(KEYS, st.floats(allow_nan=False), max_size=12))
def test_no_two_values_of_a_log_share_a_name(logs: dict[str, float]) -> None:
    assert len(grouped(logs)) == len(logs)


@given(evaluation_logs())
def test_no_two_values_of_an_evaluation_share_a_name(drawn: tuple[str, dict[str, float]]) -> None:
    _, logs = drawn

    assert len(grouped(logs)) == len(logs)


@given(st.dictionaries(KEYS, st.floats(allow_nan=False), max_size=12))
def test_names_that_were_grouped_once_stay(logs: dict[str, float]) -> None:
    once = {key: value for key, value in grouped(logs).items() if evaluation_prefix(grouped(logs)) is None}

    assert grouped(once) == once


@given(evaluation_logs(st.just("eval_a")), evaluation_logs(st.just("eval_b")))
def test_two_sets_are_never_mixed(first: tuple[str, dict[str, float]], second: tuple[str, dict[str, float]]) -> None:
    def own(log: dict[str, float]) -> set[str]:
        """The names of what the framework logs: a user's own may name another group."""
        return {
            name
            for key, name in zip(log, grouped(log), strict=True)
            if not key.startswith(("train/", "eval/", "test/"))
        }

    names = [own({key: value for key, value in logs.items() if "/" not in key}) for _, logs in (first, second)]
    groups = [{name for name in one if name.startswith("eval/")} for one in names]
    assert not groups[0] & groups[1]
