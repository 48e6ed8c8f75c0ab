"""What pictures show, that nothing in them is cut off or overlaps, and that matplotlib's state is unchanged."""

from __future__ import annotations

import functools
import itertools
import math
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tracking_callbacks import finance
from tracking_callbacks._delivery import pictures
from tracking_callbacks._delivery.pictures import canvas, learning

RANDOM = np.random.default_rng(11)
TRAIN_LOSS = [(step, 2.0 * math.exp(-step / 300) + 0.2) for step in range(1, 1001)]
EVALUATIONS = range(100, 1001, 100)


def classifier_points() -> dict[str, list[tuple[int, float]]]:
    """Return the metrics of a Trainer run with ClassificationMetrics."""
    eval_metrics = ("loss", "accuracy", "f1", "precision", "recall", "f1_weighted", "runtime", "samples_per_second")
    return {
        "train/loss": TRAIN_LOSS,
        "train/learning_rate": [(1, 1e-4)],
        "train/grad_norm": [(1, 3.0)],
        "train/mean_loss": [(1000, 0.7)],
        **{
            f"eval/{name}": [(step, 0.5 + index / 20 + step / 9e3) for step in EVALUATIONS]
            for index, name in enumerate(eval_metrics)
        },
        "test/accuracy": [(1000, 0.9)],
        "system/cpu_utilization_percentage": [(1, 30.0)],
    }


def hostile_points() -> dict[str, list[tuple[int, float]]]:
    """Return many sets with awkward names, gaps, infinities and a span of decades."""
    loss = [(step * 1000, value * 1e4) for step, value in TRAIN_LOSS]
    loss[300:320] = [(step, math.nan) for step, _ in loss[300:320]]
    loss[500] = (loss[500][0], math.inf)
    names = ("news", "cost_$_and_$x", "a set with a very long name that says everything there is to say", "_hidden")
    names += tuple(f"{names[2]} {number}" for number in range(8))
    sets = {f"eval/{name}/loss": [(step * 1000, 0.1 + step) for step in EVALUATIONS] for name in names}
    long = "metric_with_a_name_that_is_far_too_long_for_a_small_panel"
    return {"train/loss": loss, **sets, f"eval/news/{long}": [(1000, 12345.678)], "eval/news/accuracy": [(1000, 1.0)]}


def random_walk(size: int) -> np.ndarray:
    return 10_000 * np.cumprod(1 + RANDOM.normal(0.0002, 0.01, size))


def counts(classes: int) -> np.ndarray:
    return RANDOM.integers(0, 9, (classes, classes)) + np.diag(RANDOM.integers(50, 2000, classes))


def regression(size: int) -> dict[str, Any]:
    true = RANDOM.uniform(1, 5, size)
    return {"rows": size, "true": true.tolist(), "predicted": (0.8 * true + RANDOM.normal(0.5, 0.4, size)).tolist()}


def scores(*names: str) -> dict[str, Any]:
    values = {name: {score: RANDOM.uniform() for score in ("precision", "recall", "f1")} for name in names}
    return {"names": len(names), "scores": {name: one | {"support": 1234} for name, one in values.items()}}


PICTURES: dict[str, Callable[[], Figure | None]] = {
    "learning": lambda: pictures.learning_curves(classifier_points()),
    "learning-hostile": lambda: pictures.learning_curves(hostile_points()),
    "learning-one-point": lambda: pictures.learning_curves({"train/loss": [(1, 0.693)], "eval/f1": [(1, 0.0)]}),
    "learning-diverged": lambda: pictures.learning_curves({"train/loss": [(step, math.nan) for step in range(9)]}),
    "learning-flat": lambda: pictures.learning_curves({"train/loss": [(s, 12345.6 + s * 1e-9) for s in range(9)]}),
    "learning-extreme": lambda: pictures.learning_curves({"train/loss": [(1, 1e-200), (2, 1e200), (3, -1e299)]}),
    "confusion-2": lambda: pictures.confusion_matrix(["negative", "positive"], counts(2), note="eval, step 400"),
    "confusion-empty-row": lambda: pictures.confusion_matrix(["a", "disgust and contempt"], [[0, 0], [1, 123_456]]),
    "confusion-12": lambda: pictures.confusion_matrix([f"class number {n}" for n in range(12)], counts(12)),
    "confusion-50": lambda: pictures.confusion_matrix(
        [f"intent ${n} with a long $name" for n in range(50)], counts(50)
    ),
    "regression": lambda: pictures.regression_errors(regression(400), note="eval, step 400"),
    "regression-one": lambda: pictures.regression_errors({"rows": 1, "true": [3.0], "predicted": [3.0]}),
    "regression-hostile": lambda: pictures.regression_errors(
        {"rows": 9000, "true": [0.0, 1e-300, 1e12, 5.0], "predicted": [math.nan, -1e12, 1e12, math.inf]}
    ),
    "scores": lambda: pictures.score_bars(scores("PER", "LOC", "ORG"), note="eval, step 400"),
    "scores-20": lambda: pictures.score_bars(
        scores(*(f"label ${n} with a long $name that goes on" for n in range(20))) | {"names": 41}
    ),
    "scores-one": lambda: pictures.score_bars(scores("_")),
    "episodes": lambda: pictures.episode_curves(np.arange(1, 401) * 250, random_walk(400), np.full(400, 250)),
    "episodes-one": lambda: pictures.episode_curves([252], [-0.031], [252]),
    "sharpe": lambda: pictures.sharpe_curve(
        np.arange(1, 301) * 252e4,
        np.where(np.arange(300) % 30, RANDOM.normal(size=300), np.nan),
        source="info:net_worth",
    ),
    "equity": lambda: pictures.equity_curves({f"episode {n}": random_walk(250 + n) for n in range(9)}),
    "equity-flat": lambda: pictures.equity_curves({"last episode": np.ones(30)}),
}


def sheet(**changes: Any) -> dict[str, Any]:
    """Return the content of a tear sheet: a market that stands still for a while, held on every third day."""
    returns = RANDOM.normal(0.0, 0.01, 140)
    returns[20:100] = 0.0
    held = [float(step % 3 == 0) for step in range(140)]
    trades = [
        {"side": "long", "entry": "", "exit": "", "entry_step": step, "exit_step": step, "periods": 1}
        | {"entry_price": 1.0, "exit_price": None, "return": 0.01, "closed": True}
        for step in range(0, 140, 3)
    ]
    days = [f"{day}T00:00:00" for day in np.arange("2026-01-09", "2026-05-29", dtype="datetime64[D]")]
    series = {"returns": returns.tolist(), "prices": np.cumprod(1.0 + returns).tolist(), "positions": held}
    statistics = {"trades": 46.5, "max_drawdown_length": 12.0, "fees": 3.0}
    content: dict[str, Any] = {"title": "Sheet", "statistics": statistics, "episodes": 2, "periods_per_year": 252}
    return content | {"series": series | {"dates": days} | changes, "trades": trades}


SHEETS = {
    name: functools.partial(lambda name: pictures.sheet_figures(sheet())[name], name)
    for name in ("performance", "rolling_sharpe", "monthly_returns", "positions", "distribution")
}


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def tick_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


# -- the look ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PICTURES, "performance", "rolling_sharpe"])
def test_no_text_is_cut_off_or_overlaps_or_takes_the_space_of_a_panel(name: str) -> None:
    figure = drawn((PICTURES | SHEETS)[name]())
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]
    for text in texts:
        box = text.get_window_extent(renderer)
        assert min(box.x0, box.y0) >= 0, text.get_text()
        assert max(box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 0, text.get_text()
    for axes in figure.axes:
        assert axes.get_ylabel()
        assert axes.get_window_extent(renderer).height >= (3.8 if axes.images else 1.3) * canvas.DPI
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(renderer) for label in labels if label.get_rotation() != 45]
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("name", [*PICTURES, *SHEETS])
def test_drawing_warns_of_nothing(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.png(drawn((PICTURES | SHEETS)[name]()))


def test_a_tear_sheet_has_dates_and_its_table_says_what_it_covers() -> None:
    page = pictures.tear_sheet(sheet())

    assert "140 steps, 2026-01-09 to 2026-05-28;" in page
    assert "the last of 2 episodes, the statistics are those of all, trades and fees per episode" in page
    assert "<td>Trades</td><td>46.5</td>" in page
    assert "<td>Longest drawdown (steps)</td><td>12</td>" in page


def test_the_time_axes_of_a_tear_sheet_have_the_dates_of_their_steps() -> None:
    def axes_of(**changes: Any) -> Axes:
        return pictures.sheet_figures(sheet(**changes))["performance"].axes[0]

    def labels(axes: Axes) -> dict[float, str]:
        return dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels()), strict=True))

    days, plain = axes_of(), axes_of(dates=[])
    hours = axes_of(dates=[f"2026-01-09 {step // 60:02}:{step % 60:02}:00" for step in range(140)])
    assert labels(days)[50.0] == "2026-02-27"
    assert labels(hours)[50.0] == "00:49"
    assert (days.get_xlabel(), plain.get_xlabel(), labels(plain)[50.0]) == ("date", "step", "50")
    assert axes_of(dates=[f"bar {step}" for step in range(140)]).get_xlabel() == "step"


@pytest.mark.parametrize("name", ["learning", "confusion-2", "episodes", "equity"])
def test_a_png_has_twice_the_density_and_readable_axes(name: str) -> None:
    figure = drawn(PICTURES[name]())
    content = pictures.png(figure)
    width, height = figure.get_size_inches()

    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (round(width * 200), round(height * 200))
    assert all(axes.get_xlabel() or axes.get_label() == "<colorbar>" for axes in figure.axes)
    assert all(text.get_fontsize() >= 6.5 for text in figure.findobj(Text) if isinstance(text, Text))


# -- learning curves ---------------------------------------------------------------------------------------------


def test_learning_curves_have_a_panel_for_the_loss_and_each_score() -> None:
    figure = drawn(pictures.learning_curves(classifier_points()))

    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Loss over training steps",
        *("Accuracy", "F1", "Precision", "Recall", "F1 (weighted)"),
    ]
    assert {axes.get_xlabel() for axes in figure.axes} == {"training step"}
    assert legend_of(figure) == [
        *("train (each logged value)", "train (running mean over 43 values)", "eval", "test"),
    ]


def test_lines_are_the_points_and_a_colour_means_a_set() -> None:
    points = classifier_points()
    loss, accuracy, *_ = drawn(pictures.learning_curves(points)).axes

    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        assert lines(axes)["eval"].get_xydata() == pytest.approx(np.array(points[f"eval/{metric}"]))
    assert lines(loss)["train (each logged value)"].get_xydata() == pytest.approx(np.array(TRAIN_LOSS))
    assert lines(loss)["eval"].get_color() == lines(accuracy)["eval"].get_color()
    assert len({lines(loss)["train (each logged value)"].get_color(), lines(loss)["eval"].get_color()}) == 2
    assert lines(accuracy)["test"].get_marker() not in ("none", "None", "")


def test_sets_are_distinguished_by_name_even_when_metrics_have_slashes() -> None:
    points = {
        "eval/loss": [(1, 1.0)],
        "eval/rewards/margins": [(1, 0.5)],
        "train/rewards/margins": [(1, 0.4)],
        "eval/news/loss": [(1, 2.0)],
        "eval/news/accuracy": [(1, 0.7)],
        "train/rewards/chosen": [(1, 9.0)],
    }
    figure = drawn(pictures.learning_curves(points))

    assert {axes.get_title(loc="left"): set(lines(axes)) for axes in figure.axes} == {
        "Loss over training steps": {"eval", "eval/news"},
        "Accuracy": {"eval/news"},
        "Rewards/margins": {"eval", "train"},
    }


def test_only_a_loss_that_spans_decades_has_a_logarithmic_axis() -> None:
    steep = drawn(pictures.learning_curves({"train/loss": [(1, 30.0), (2, 1.0), (3, 0.2)]}))
    flat = drawn(pictures.learning_curves({"train/loss": [(1, 3.0), (2, 1.0), (3, 0.2)]}))
    signed = drawn(pictures.learning_curves({"train/loss": [(1, 30.0), (2, -1.0), (3, 0.2)]}))

    assert [figure.axes[0].get_yscale() for figure in (steep, flat, signed)] == ["log", "linear", "linear"]
    assert "logarithmic" in steep.axes[0].get_ylabel()


def test_non_finite_values_are_drawn_as_gaps_and_crosses() -> None:
    values = [1.0, math.nan, 0.8, math.inf, -1.797e308, 0.5, 0.4]
    axes = drawn(pictures.learning_curves({"train/loss": list(enumerate(values))})).axes[0]

    assert np.flatnonzero(np.isnan(lines(axes)["train"].get_ydata())).tolist() == [1, 3, 4]
    assert list(lines(axes)[canvas.NOT_FINITE].get_xdata()) == [1, 3, 4]
    assert axes.get_ylim()[1] < 2.0


def test_a_single_value_between_gaps_is_shown_in_a_line_without_markers() -> None:
    points = [(step, math.nan if 100 <= step <= 200 and step != 150 else 1.0) for step in range(300)]
    axes = drawn(pictures.learning_curves({"train/loss": points})).axes[0]

    assert any(list(line.get_xdata()) == [150] and line.get_marker() == "o" for line in axes.lines)


def test_resumed_training_shows_the_last_value_of_each_step() -> None:
    axes = drawn(pictures.learning_curves({"train/loss": [(1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.0)]})).axes[0]

    assert lines(axes)["train"].get_xydata().tolist() == [[1, 3.0], [2, 1.5], [3, 1.0]]


def test_there_are_no_more_panels_than_fit() -> None:
    points = {f"eval/score_{index}": [(1, 0.5)] for index in range(20)}

    assert len(drawn(pictures.learning_curves(points)).axes) == learning.MAX_PANELS


def test_the_axis_names_the_kind_of_step() -> None:
    axes = drawn(pictures.learning_curves({"train/loss": [(2048, 0.5)]}, step="environment step")).axes[0]

    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("Loss over environment steps", "environment step")


@pytest.mark.parametrize("points", [{}, {"train/loss": []}, {"train/learning_rate": [(1, 0.1)]}, {"loss": [(1, 1.0)]}])
def test_without_curves_there_is_no_picture(points: dict[str, list[tuple[int, float]]]) -> None:
    assert pictures.learning_curves(points) is None


# -- confusion matrix --------------------------------------------------------------------------------------------


def test_a_confusion_matrix_shows_counts_shares_and_the_accuracy() -> None:
    figure = drawn(pictures.confusion_matrix(["no", "yes"], [[90, 10], [30, 70]], note="eval, step 400"))
    axes = figure.axes[0]

    assert figure.get_suptitle() == "Confusion matrix: accuracy 80.0% (160 of 200)"
    assert axes.get_title() == "eval, step 400"
    assert [text.get_text() for text in axes.texts] == ["90\n90%", "10\n10%", "30\n30%", "70\n70%"]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[0.9, 0.1], [0.3, 0.7]]))
    assert tick_texts(axes) == [text.get_text() for text in axes.get_xticklabels()] == ["no", "yes"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_rounding_never_claims_all_or_none() -> None:
    figure = drawn(pictures.confusion_matrix(["a", "b"], [[99_999, 1], [0, 100_000]]))

    assert "accuracy 99.9% (199,999 of 200,000)" in figure.get_suptitle()
    assert [text.get_text().split("\n")[1] for text in figure.axes[0].texts] == [">99%", "<1%", "0%", "100%"]


def test_a_class_without_samples_is_grey_and_the_title_says_so() -> None:
    axes = drawn(pictures.confusion_matrix(["a", "b"], [[3, 1], [0, 0]])).axes[0]

    assert axes.images[0].get_array().mask.tolist() == [[False, False], [True, True]]
    assert "grey" in axes.get_title()


def test_many_classes_are_drawn_as_shades_with_as_many_names_as_fit() -> None:
    fifty = drawn(pictures.confusion_matrix([f"c{n}" for n in range(50)], counts(50))).axes[0]
    many = drawn(pictures.confusion_matrix([f"c{n}" for n in range(151)], counts(151))).axes[0]

    assert not fifty.texts
    assert not many.texts
    assert tick_texts(fifty) == [f"c{n}" for n in range(50)]
    assert tick_texts(many) == [f"c{n}" for n in range(0, 151, 4)]


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1, 2], [3, 4], [5, 6]], [[1, -2], [3, 4]], [[1, math.nan], [3, 4]]])
def test_an_invalid_matrix_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="matrix: expected"):
        pictures.confusion_matrix(["a", "b"], matrix)


def test_without_samples_there_is_no_matrix() -> None:
    assert pictures.confusion_matrix([], []) is None
    assert pictures.confusion_matrix(["a", "b"], [[0, 0], [0, 0]]) is None


# -- episodes ----------------------------------------------------------------------------------------------------


def test_episodes_are_drawn_in_the_order_of_their_steps_with_a_running_mean() -> None:
    steps, rewards, lengths = np.arange(1, 201) * 10, RANDOM.normal(size=200), RANDOM.integers(1, 20, 200)
    shuffled = RANDOM.permutation(200)
    figure = drawn(pictures.episode_curves(steps[shuffled], rewards[shuffled], lengths[shuffled]))

    for axes, values in zip(figure.axes, (rewards, lengths), strict=True):
        assert lines(axes)["each episode"].get_xydata() == pytest.approx(np.column_stack([steps, values]))
        means = lines(axes)["running mean over 20 episodes"].get_ydata()
        assert means[100] == pytest.approx(values[91:111].mean())
    assert [axes.get_ylabel() for axes in figure.axes] == ["sum of rewards", "steps in the episode"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"environment steps (timesteps)"}
    assert figure.axes[1].get_ylim()[0] > -1


def test_the_work_of_drawing_does_not_grow_with_the_number_of_episodes() -> None:
    rewards = RANDOM.normal(size=100_000)
    rewards[77_777] = 50.0
    figure = drawn(pictures.episode_curves(np.arange(100_000) * 200, rewards, np.full(100_000, 200)))

    assert sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines) <= 4 * canvas.MAX_POINTS
    assert max(lines(figure.axes[0])["each episode"].get_ydata()) == 50.0


def test_episodes_without_a_ratio_are_skipped_and_counted() -> None:
    ratios = [1.0, math.nan, 2.0, -1.0]
    figure = drawn(pictures.sharpe_curve([10, 20, 30, 40], ratios, periods_per_year=8760, source="info:net_worth"))
    axes = figure.axes[0]

    assert lines(axes)["each episode"].get_xydata().tolist() == [[10, 1.0], [30, 2.0], [40, -1.0]]
    note = axes.texts[0].get_text()
    assert note == "returns: info:net_worth; 8,760 periods a year; 1 of 4 episodes have no ratio"
    assert pictures.sharpe_curve([10, 20], [math.nan, math.nan]) is None


def test_series_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards: expected one per timestep, 2, got 1"):
        pictures.episode_curves([1, 2], [1.0], [5, 5])
    with pytest.raises(ValueError, match=r"timesteps: expected a one-dimensional series, got shape \(1, 2\)"):
        pictures.sharpe_curve([[1, 2]], [1.0])


def test_without_episodes_there_is_no_picture() -> None:
    assert pictures.episode_curves([], [], []) is None
    assert pictures.sharpe_curve([], []) is None
    assert pictures.equity_curves({}) is None
    assert pictures.equity_curves({"one value": [1.0], "none": [math.nan, math.nan]}) is None


# -- equity ------------------------------------------------------------------------------------------------------


def test_an_equity_curve_has_its_drawdown_beneath_it() -> None:
    equity = random_walk(500)
    figure = drawn(pictures.equity_curves({"last episode": equity}))
    above, below = figure.axes
    returns = finance.returns_from_equity(equity)
    worst, total = finance.max_drawdown(returns), finance.total_return(returns)
    assert worst is not None
    assert total is not None

    assert above.lines[0].get_ydata() == pytest.approx(equity)
    assert below.lines[0].get_ydata().min() == pytest.approx(100 * worst)
    filled = below.collections[0].get_datalim(below.transData)
    assert (filled.y0, filled.y1) == pytest.approx((100 * worst, 0.0))
    sign = "+" if total >= 0 else "−"
    expected = f"last episode: return {sign}{abs(total):.1%}, largest drawdown {-worst:.1%}"
    assert legend_of(figure) == [expected]
    assert (above.get_ylabel(), below.get_ylabel()) == ("account value", "below the peak (%)")


def test_the_statistics_of_an_account_below_zero_match_its_curves() -> None:
    figure = drawn(pictures.equity_curves({"last episode": [100.0, 0.0, -10.0, math.nan, 3.0]}))

    assert legend_of(figure) == ["last episode: return −97.0%, largest drawdown 110.0%"]
    assert np.nanmin(figure.axes[1].lines[0].get_ydata()) == pytest.approx(-110.0)
    assert legend_of(drawn(pictures.equity_curves({"in debt": [-1.0, 2.0]}))) == ["in debt"]


def test_the_last_episodes_are_drawn_and_a_long_one_is_thinned() -> None:
    curves = {f"episode {number}": random_walk(100) for number in range(9)} | {"the last": random_walk(300_000)}
    figure = drawn(pictures.equity_curves(curves))

    assert [entry.partition(":")[0] for entry in legend_of(figure)] == [
        *(f"episode {number}" for number in range(4, 9)),
        "the last",
    ]
    assert all(len(line.get_xdata()) <= canvas.MAX_POINTS for axes in figure.axes for line in axes.lines)


# -- matplotlib's global state -----------------------------------------------------------------------------------


def test_drawing_imports_no_pyplot_and_changes_no_setting() -> None:
    code = """
import sys
from tracking_callbacks._delivery import pictures
assert "matplotlib" not in sys.modules, "importing the package imports matplotlib"
import matplotlib
# Reading the setting "backend" chooses one.
before = {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
assert matplotlib.get_backend(auto_select=False) is None
assert pictures.png(pictures.learning_curves({"train/loss": [(1, 100.0), (2, 0.1)], "eval/f1": [(2, 0.5)]}))
assert pictures.png(pictures.confusion_matrix(["a", "b"], [[2, 1], [0, 3]]))
assert pictures.png(pictures.equity_curves({"last": [1.0, 1.1, 0.9]}))
assert {key: matplotlib.rcParams[key] for key in before} == before
assert matplotlib.get_backend(auto_select=False) is None
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["learning-hostile", "confusion-empty-row", "equity-flat"])
def test_a_users_style_does_not_reach_the_pictures(name: str) -> None:
    ordinary = pictures.png(drawn(PICTURES[name]()))
    with matplotlib.rc_context():
        matplotlib.style.use(["dark_background", "ggplot"])
        matplotlib.rcParams.update(
            {"text.usetex": True, "font.family": "serif", "font.size": 30, "savefig.bbox": "tight", "figure.dpi": 50}
        )
        styled = pictures.png(drawn(PICTURES[name]()))

    assert styled == ordinary


def test_threads_draw_the_same_pictures_at_once() -> None:
    names = ["learning-one-point", "confusion-empty-row", "equity-flat"]

    def draw(name: str) -> bytes:
        return pictures.png(drawn(PICTURES[name]()))

    alone = [draw(name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, names[::-1]))

    assert together == alone[::-1]


def test_two_evaluations_are_shown_as_points_and_said() -> None:
    loss = [(step, 1.0) for step in range(10)]
    figure = drawn(pictures.learning_curves({"train/loss": loss, "eval/loss": [(3, 0.5), (6, 0.4)]}))
    styles = {line.get_label(): line.get_linestyle() for axes in figure.axes for line in axes.lines}

    assert (styles["train"], styles["eval (only 2 evaluations)"]) == ("-", "None")
