"""The series that pictures draw: smoothed, thinned, with gaps; and their tick labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tracking_callbacks._delivery import pictures
from tracking_callbacks._delivery.pictures import canvas, series

RANDOM = np.random.default_rng(12)


@pytest.mark.parametrize("window", [1, 2, 7, 1000])
def test_a_running_mean_is_the_mean_of_its_window(window: int) -> None:
    values = RANDOM.normal(size=50)
    values[[3, 20, 21, 22]] = np.nan
    width = min(window, 50)
    back, ahead = width - 1 - width // 2, width // 2
    for index, mean in enumerate(series.running_mean(values, window)):
        known = values[max(index - back, 0) : index + ahead + 1]
        known = known[~np.isnan(known)]

        assert mean == pytest.approx(known.mean()) if known.size else math.isnan(mean)


def test_one_large_value_does_not_spoil_the_mean_beyond_its_window() -> None:
    values = np.full(100, 0.1)
    values[10] = 1e20

    assert series.running_mean(values, 5)[20:] == pytest.approx(np.full(80, 0.1), rel=1e-12)


@pytest.mark.parametrize("size", [10, 11, 99, 1_000, 12_345])
def test_a_thinned_series_keeps_ends_extremes_and_order(size: int) -> None:
    x, y = np.arange(size, dtype=float), RANDOM.normal(size=size)
    thin_x, thin_y = series.envelope(x, y, 10)

    assert thin_x.size <= 10
    assert (np.diff(thin_x) > 0).all()
    assert (thin_y == y[thin_x.astype(int)]).all()
    assert (thin_x[0], thin_x[-1]) == (0, size - 1)
    assert (thin_y.min(), thin_y.max()) == (y.min(), y.max())


def test_a_long_gap_survives_thinning() -> None:
    y = np.ones(10_000)
    y[4_000:6_000] = np.nan
    x, thinned = series.envelope(np.arange(10_000.0), y, 100)

    assert np.isnan(thinned[(x > 4_100) & (x < 5_900)]).all()
    assert not np.isnan(thinned[(x < 3_900) | (x > 6_100)]).any()


def test_the_tables_of_a_run_are_read_back() -> None:
    table = "episode,timestep,reward,sharpe_ratio\n1,250,3.5,\n2,500,-1.25,0.75\n3,7"
    columns = pictures.read_columns(table.splitlines())

    assert list(columns) == ["episode", "timestep", "reward", "sharpe_ratio"]
    assert columns["timestep"].tolist() == [250, 500]
    assert columns["sharpe_ratio"] == pytest.approx([math.nan, 0.75], nan_ok=True)
    assert pictures.read_columns([]) == {}


def test_no_tick_is_an_offset_or_has_the_noise_of_floats() -> None:
    assert canvas.number_texts([0.0, 0.1, 0.1 + 0.2]) == ["0.0", "0.1", "0.3"]
    assert canvas.number_texts([-2500.0, -0.0, 2500.0]) == ["−2,500", "0", "2,500"]
    assert canvas.number_texts([12_345.678, 12_345.68]) == ["12,345.678", "12,345.680"]
    assert canvas.number_text(2e-7) == "2e−7"
    assert canvas.step_texts([0.0, 1_500_000.0, 3_000_000.0]) == ["0", "1.5M", "3.0M"]
    assert canvas.step_texts([0.0, 20_000.0]) == ["0", "20,000"]


@pytest.mark.parametrize(("low", "high"), [(0.0004, 0.09), (0.9, 1.3), (3.0, 5000.0), (1e-20, 1e20)])
def test_a_logarithmic_axis_has_a_few_round_ticks_within_its_limits(low: float, high: float) -> None:
    ticks = canvas.log_ticks(low, high)

    assert 1 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)
