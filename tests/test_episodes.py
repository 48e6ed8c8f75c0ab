"""Tracking episodes without any reinforcement-learning library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracking_callbacks import finance
from tracking_callbacks._episodes.episode_table import EpisodeTable
from tracking_callbacks._episodes.episode_tracker import Episode, EpisodeTracker, StepBuffer
from tracking_callbacks._episodes.point_budget import PointBudget
from tracking_callbacks._episodes.returns import choose_source
from tracking_callbacks._episodes.statistics import RunningStats


def test_a_buffer_that_grows_and_shifts_loses_nothing() -> None:
    buffer = StepBuffer(2, rows=4)
    lengths = (3, 7)
    step, sums = 0, ([], [])
    for step in range(1, 43):
        buffer.append([step, -step], [step, None])
        for env, length in enumerate(lengths):
            if step % length == 0:
                total, rewards, _, complete = buffer.close(env)
                assert complete
                assert len(rewards) == length
                sums[env].append(total)

    assert sums[0] == [sum(range(end - 2, end + 1)) for end in range(3, 43, 3)]
    assert sums[1] == [-sum(range(end - 6, end + 1)) for end in range(7, 43, 7)]
    assert buffer.total_reward() == 0.0


def test_an_episode_longer_than_the_limit_keeps_its_sum_and_length() -> None:
    buffer = StepBuffer(1, rows=8, limit=16)
    for _ in range(100):
        buffer.append([1.0], None)
    length = buffer.length(0)
    total, rewards, _, complete = buffer.close(0)

    assert (total, length, complete) == (100.0, 100, False)
    assert len(rewards) <= 16
    assert buffer.total_reward() == 100.0


def play(book: EpisodeTracker, equities: list[Any], **last: Any) -> Episode | None:
    infos = [{"net_worth": equity} for equity in equities]
    for info in infos:
        book.add_step([1.0], [info])
    return book.finish(0, len(equities), infos[-1] | last, {"net_worth": 50.0})


def test_equity_starts_at_the_reset_and_is_not_carried_on() -> None:
    book = EpisodeTracker(1, choose_source("auto", {"net_worth": 1.0}), 252)
    book.begin(0, {"net_worth": 100.0})
    first, second = play(book, [110.0, 99.0, 100.0]), play(book, [55.0, 44.0, 50.0])

    for episode, equity in ((first, [100.0, 110.0, 99.0, 100.0]), (second, [50.0, 55.0, 44.0, 50.0])):
        assert episode is not None
        assert episode.statistics["sharpe_ratio"] == finance.sharpe_ratio(finance.returns_from_equity(equity))
        assert episode.statistics["total_return"] == pytest.approx(0.0)


@pytest.mark.parametrize("odd", [None, "much", math.nan, math.inf, [1, 2], {}])
def test_a_value_that_is_not_a_number_loses_only_the_statistics_of_its_episode(odd: Any) -> None:
    book = EpisodeTracker(1, choose_source("net_worth", {}), 252)
    book.begin(0, {"net_worth": 100.0})
    spoilt, sound = play(book, [110.0, odd, 100.0]), play(book, [55.0, 44.0, 50.0])

    assert spoilt is not None
    assert (spoilt.reward, spoilt.statistics, spoilt.skipped) == (3.0, {}, "missing or infinite values")
    assert sound is not None
    assert sound.skipped is None


def test_an_episode_seen_only_in_part_counts_only_with_a_monitor() -> None:
    monitor = {"episode": {"r": 7.0, "l": 9}}

    joined = EpisodeTracker(1, choose_source("reward", {}), 252)
    assert play(joined, [1.0, 2.0]) is None
    monitored = EpisodeTracker(1, choose_source("reward", {}), 252)
    episode = play(monitored, [1.0, 2.0], **monitor)
    assert episode is not None
    assert (episode.reward, episode.length, episode.skipped) == (7.0, 9, "seen only in part")


def test_the_monitor_confirms_an_episode_across_a_pause() -> None:
    book = EpisodeTracker(1, choose_source("reward", {}), 252)
    book.begin(0, None)
    book.add_step([1.0], [{}])
    book.interrupt()
    episode = play(book, [1.0, 2.0], episode={"r": 3.0, "l": 3})

    assert episode is not None
    assert episode.skipped is None


def test_points_are_bounded_however_long_a_run_is_continued() -> None:
    budget = PointBudget(10_000)
    spent = [budget.spend(step) for step in range(1, 200_001)]

    assert 790 <= sum(spent[:10_000]) <= 801
    assert sum(spent) <= 1000
    assert any(spent[100_000:])


def test_a_run_with_few_episodes_shows_all_of_them() -> None:
    budget = PointBudget(10_000)

    assert all(budget.spend(step) for step in range(20, 10_001, 20))


def test_a_summary_equals_numpys() -> None:
    values = np.random.default_rng(0).normal(1e6, 1.0, 1000)
    summary = RunningStats()
    for value in (*values, math.nan):
        summary.add(float(value))
    expected = {"x_mean": values.mean(), "x_min": values.min(), "x_max": values.max(), "x_std": values.std()}
    expected["x_count"] = 1000.0

    assert summary.count == 1000
    assert summary.metrics("x") == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert RunningStats().metrics("x") == {}


def test_the_table_has_a_line_for_every_episode(tmp_path: Path) -> None:
    table = EpisodeTable(tmp_path / "episodes.csv")
    for number in range(1200):
        table.add(Episode(number, 0, 1.5, 10, {"sharpe_ratio": 0.25}, None))
    lines = table.write().read_text(encoding="utf-8").splitlines()
    table.add(Episode(1200, 0, math.nan, 10, {}, "seen only in part"))

    assert len(lines) == 1201
    assert lines[0].startswith("episode,timestep,env,reward,length,sharpe_ratio")
    assert lines[1] == "1,0,0,1.5,10,0.25,,,,"
    assert table.write().read_text(encoding="utf-8").splitlines()[-1] == "1201,1200,0,nan,10,,,,,"
