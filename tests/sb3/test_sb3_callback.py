"""``MLflowSB3Callback`` in real training, read back from a real store."""

from __future__ import annotations

import functools
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
from markets import TINY, Market, Stop, Store, callback_for, market
from matplotlib.figure import Figure
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import CSVOutputFormat, configure
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from tracking_callbacks import ConfigError, finance
from tracking_callbacks.sb3 import MLflowSB3Callback


def test_training_gives_a_complete_run_and_a_registered_model(store: Store, tmp_path: Path) -> None:
    callback = callback_for(
        store, log_model=True, registered_model_name="market", aliases=["champion"], tags={"team": "desk 7"}
    )
    agent = PPO("MlpPolicy", market(2), learning_rate=lambda progress: progress * 1e-3, **TINY)
    agent.learn(128, callback=callback)
    run = store.delivered(callback.run)
    version = store.client.get_model_version_by_alias("market", "champion")

    assert run.info.status == "FINISHED"
    assert run.data.tags["framework"] == "stable_baselines3"
    assert run.data.tags["framework_version"] == stable_baselines3.__version__
    assert run.data.params["algorithm"] == "PPO"
    assert run.data.params["learning_rate.start"] == "0.001"
    assert run.data.params["learning_rate.end"] == "0.0"
    assert run.data.params["clip_range"] == "0.2"
    assert run.data.params["n_envs"] == "2"
    assert run.data.params["env.id"] == "Market"
    assert run.data.params["total_timesteps"] == "128"
    assert run.data.params["sharpe.source"] == "info:portfolio_value"
    assert not [value for value in run.data.params.values() if " at 0x" in value]
    assert run.data.metrics["train/cumulative_reward"] == 1280.0
    assert version.run_id == run.info.run_id
    assert version.tags["team"] == run.data.tags["team"] == "desk 7"
    assert len(store.episodes(callback.run, tmp_path)) == 12


def test_every_update_including_the_last_is_logged_once_at_its_step(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(96, callback=callback)
    store.delivered(callback.run)

    assert store.points(callback.run, "train/n_updates") == [(32, 1.0), (64, 2.0), (96, 3.0)]
    assert len(store.points(callback.run, "train/loss")) == 3
    assert [step for step, _ in store.points(callback.run, "time/iterations")] == [32, 64, 96]


def test_updates_are_complete_without_any_dump(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(96, callback=callback, log_interval=None)
    store.delivered(callback.run)

    assert [step for step, _ in store.points(callback.run, "train/n_updates")] == [32, 64, 96]


def test_an_unusable_name_loses_only_its_own_value(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    class Nameless(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record(" ", 1.0)
            return True

    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(96, callback=[Nameless(), callback])
    store.delivered(callback.run)

    assert [step for step, _ in store.points(callback.run, "time/iterations")] == [32, 64, 96]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "expected a name with at least one character that shows, got ' '; it is left out of the run"


def test_recorded_figures_become_artifacts_and_recorded_texts_lose_only_themselves(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Notes(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.logger.record("note", "seven")
            self.logger.record("mine/counted", np.int64(7))
            self.logger.record("mine/plot", LoggedFigure(Figure(), close=True))
            self.logger.record("no figure", LoggedFigure("picture", close=True))

    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=[Notes(), callback])
    run = store.delivered(callback.run)

    assert store.points(callback.run, "mine/counted") == [(32, 7.0), (64, 7.0)]
    assert [step for step, _ in store.points(callback.run, "time/iterations")] == [32, 64]
    plots = store.client.list_artifacts(run.info.run_id, "figures/mine/plot")
    assert [Path(entry.path).name for entry in plots] == ["000000032.png", "000000064.png"]
    assert [record.getMessage() for record in caplog.records] == [
        "metric 'note': expected one number, got 'seven'; it is left out of the run",
        "log_figure: expected a figure of matplotlib or plotly, got 'picture' (str); it is left out of the run",
    ]


def test_a_recorded_plotly_figure_becomes_a_page(store: Store) -> None:
    plotly = pytest.importorskip("plotly.graph_objects")

    class Page(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.logger.record("mine/page", LoggedFigure(plotly.Figure(), close=True))

    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=[Page(), callback])
    run = store.delivered(callback.run)
    pages = store.client.list_artifacts(run.info.run_id, "figures/mine/page")

    assert [Path(entry.path).name for entry in pages] == ["000000032.html"]


@pytest.mark.parametrize("periods", [252, 252.0, np.int64(252), np.float32(252), np.array(252), Fraction(252)])
def test_periods_per_year_is_any_positive_number(periods: Any) -> None:
    assert MLflowSB3Callback(periods_per_year=periods).periods_per_year == 252


@pytest.mark.parametrize("periods", [True, np.bool_(True), 0, np.int64(-1), math.nan, np.float64("inf"), "252", None])
def test_periods_per_year_that_are_no_positive_number_are_refused(periods: Any) -> None:
    with pytest.raises(ConfigError, match="periods_per_year: expected a positive number"):
        MLflowSB3Callback(periods_per_year=periods)


def test_an_early_stop_repeats_no_update(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", market(), **TINY).learn(96, callback=[callback, Stop(at=70)])
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert run.data.tags["tracking_callbacks.stopped_early"] == "true"
    assert [step for step, _ in store.points(callback.run, "train/n_updates")] == [32, 64]


def test_off_policy_values_are_logged_at_dumps_and_at_the_end(store: Store) -> None:
    callback = callback_for(store)
    agent = DQN("MlpPolicy", market(), learning_starts=10, policy_kwargs={"net_arch": [4]}, buffer_size=100, seed=0)
    agent.learn(95, callback=callback, log_interval=4)
    run = store.delivered(callback.run)
    updates = store.points(callback.run, "train/n_updates")

    assert [step for step, _ in updates] == [40, 80, 96]
    assert [step for step, _ in store.points(callback.run, "rollout/episode_reward_mean")] == [40, 80, 96]
    assert run.data.params["train_freq"] == "4 step"
    assert run.data.metrics["train/cumulative_reward"] == 960.0


def test_the_users_own_logger_outputs_stay_unchanged(store: Store, tmp_path: Path) -> None:
    agent = PPO("MlpPolicy", market(), **TINY)
    logger = configure(str(tmp_path), ["csv"])
    agent.set_logger(logger)
    before = list(logger.output_formats)
    for _ in range(2):
        callback = callback_for(store)
        agent.learn(64, callback=callback)
        store.delivered(callback.run)

        # The user's logger keeps the last update of one training run for the next one, which must not log it.
        assert [step for step, _ in store.points(callback.run, "train/n_updates")] == [32, 64]
    logger.close()
    assert logger.output_formats == before
    assert isinstance(before[0], CSVOutputFormat)
    assert "train/loss" in (tmp_path / "progress.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("monitored", [True, False], ids=["monitor", "no-monitor"])
def test_rewards_are_raw_behind_vec_normalize(store: Store, monitored: bool) -> None:
    make = (lambda: Monitor(Market())) if monitored else Market
    callback = callback_for(store)
    PPO("MlpPolicy", VecNormalize(DummyVecEnv([make] * 2)), **TINY).learn(64, callback=callback)
    run = store.delivered(callback.run)

    assert set(store.points(callback.run, "episode/reward")) == {(20, 100.0), (40, 100.0), (60, 100.0)}
    assert len(store.points(callback.run, "episode/reward")) == 6
    assert run.data.metrics["rollout/episode_reward_std"] == 0.0
    assert run.data.metrics["train/cumulative_reward"] == 640.0
    assert run.data.params["vec_normalize.clip_obs"] == "10.0"


@pytest.mark.parametrize(
    "vec_env", [DummyVecEnv, functools.partial(SubprocVecEnv, start_method="fork")], ids=["dummy", "subprocess"]
)
def test_each_episodes_sharpe_ratio_starts_from_its_own_reset(
    store: Store, tmp_path: Path, vec_env: Callable[..., Any]
) -> None:
    callback = callback_for(store, periods_per_year=365)
    env = VecNormalize(market(2, vec_env, length=16))
    PPO("MlpPolicy", env, **TINY).learn(64, callback=callback)
    env.close()
    store.delivered(callback.run)
    expected = [
        finance.sharpe_ratio(finance.returns_from_equity(Market(16).equities(episode)), periods_per_year=365)
        for episode in (1, 1, 2, 2)
    ]
    table = store.episodes(callback.run, tmp_path)

    assert [float(row["sharpe_ratio"]) for row in table] == pytest.approx(expected, rel=1e-9)
    assert [float(row["total_return"]) for row in table[:1]] == pytest.approx(
        [Market(16).equities(1)[-1] / 100.0 - 1.0]
    )


def test_rewards_are_the_returns_when_no_account_value_is_known(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", market(equity_key=None), **TINY).learn(32, callback=callback)
    run = store.delivered(callback.run)

    assert run.data.params["sharpe.source"] == "reward"
    assert "episode/sharpe_ratio" not in run.data.metrics  # constant rewards have none
    assert "episode/max_drawdown" not in run.data.metrics


def test_a_callable_gives_the_returns(store: Store) -> None:
    callback = callback_for(store, returns=lambda info, reward: info["portfolio_value"] / 1e6)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=callback)
    run = store.delivered(callback.run)
    returns = Market().equities(3)[1:] / 1e6

    assert run.data.params["sharpe.source"].startswith("callable:")
    assert run.data.metrics["episode/sharpe_ratio"] == pytest.approx(finance.sharpe_ratio(returns))


@pytest.mark.parametrize("returns", ["cash", lambda info, reward: info["cash"]], ids=["key", "callable"])
def test_missing_returns_are_reported_and_training_continues(
    store: Store, caplog: pytest.LogCaptureFixture, returns: Any
) -> None:
    callback = callback_for(store, returns=returns)
    with caplog.at_level(logging.WARNING, "tracking_callbacks"):
        PPO("MlpPolicy", market(), **TINY).learn(64, callback=callback)
    run = store.delivered(callback.run)
    warnings = [record.getMessage() for record in caplog.records if "Sharpe" in record.getMessage()]

    assert run.info.status == "FINISHED"
    assert run.data.metrics["episode/length"] == 10.0
    assert "episode/sharpe_ratio" not in run.data.metrics
    assert run.data.tags["sharpe.left_out"].endswith("6 × missing or infinite values")
    assert len(warnings) == 1
    assert "portfolio_value" in warnings[0]


def test_nan_rewards_are_counted_and_do_not_spoil_the_sum(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", VecNormalize(market(reward=math.nan)), **TINY).learn(20, callback=[callback, Stop(at=20)])
    run = store.delivered(callback.run)

    assert math.isnan(run.data.metrics["episode/reward"])
    assert run.data.metrics["train/cumulative_reward"] == 0.0
    assert "episode/sharpe_ratio" in run.data.metrics  # its returns come from the account


def test_learning_again_is_a_new_run_unless_it_continues(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    agent = PPO("MlpPolicy", Market(), **TINY)
    agent.learn(32, callback=callback)
    first = callback.run
    agent.learn(32, callback=callback, reset_num_timesteps=False)
    continued = callback.run
    agent.learn(32, callback=callback)
    store.delivered(first)

    assert continued is first
    assert callback.run is not first
    assert store.delivered(callback.run).info.run_id != first.run_id
    assert [step for step, _ in store.points(first, "train/n_updates")] == [32, 64]
    assert store.client.get_run(first.run_id).info.status == "FINISHED"
    # The episode that the pause cut in two is complete, because its monitor confirms the length.
    assert [row["sharpe_ratio"] != "" for row in store.episodes(first, tmp_path)] == [True] * 6


def test_an_exception_in_training_fails_the_run_and_keeps_its_episodes(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    agent = PPO("MlpPolicy", market(), **TINY)
    with pytest.raises(RuntimeError, match="burst"):
        agent.learn(96, callback=[callback, Stop(at=50, error=RuntimeError("burst"))])
    failed = callback.run
    agent.learn(32, callback=callback)

    assert store.delivered(failed).info.status == "FAILED"
    assert store.delivered(callback.run).info.status == "FINISHED"
    assert len(store.episodes(failed, tmp_path)) == 5


@pytest.mark.parametrize("place", ["callback_after_eval", "callback_on_new_best", "list_on_new_best"])
def test_the_run_is_equally_complete_inside_and_next_to_an_eval_callback(store: Store, place: str) -> None:
    callback = callback_for(store)
    child = CallbackList([callback]) if place == "list_on_new_best" else callback
    slot = "callback_after_eval" if place == "callback_after_eval" else "callback_on_new_best"
    parent = EvalCallback(market(), eval_freq=16, n_eval_episodes=1, verbose=0, **{slot: child})
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=[parent])
    run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert [step for step, _ in store.points(callback.run, "eval/mean_reward")][-1] == 64
    assert [step for step, _ in store.points(callback.run, "train/n_updates")] == [32, 64]
    assert "on_step" not in vars(parent)
    assert len(store.points(callback.run, "episode/reward")) == 6


def test_ending_training_twice_registers_one_model(store: Store) -> None:
    callback = callback_for(store, log_model=True, registered_model_name="announced-twice")
    agent = PPO("MlpPolicy", market(), **TINY)
    agent.learn(32, callback=callback)
    callback.on_training_end()
    store.delivered(callback.run)

    assert len(store.client.search_model_versions("name='announced-twice'")) == 1


def test_a_process_that_turns_warnings_into_errors_keeps_its_model(tmp_path: Path) -> None:
    script = """if True:
        import warnings
        from stable_baselines3 import PPO
        from tracking_callbacks import Delivery, MLflowTracker
        from tracking_callbacks.sb3 import MLflowSB3Callback

        agent = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
        warnings.filterwarnings("error")  # as gym_trading_env does when it is imported
        tracker = MLflowTracker("sqlite:///m.db", delivery=Delivery(journal_root="j", offline=True))
        agent.learn(32, callback=MLflowSB3Callback(tracker))
    """
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)

    assert len(list(tmp_path.glob("j/**/MLmodel"))) == 1


def test_the_points_of_very_short_episodes_are_bounded(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    agent = PPO("MlpPolicy", market(4, length=1), n_steps=1500, batch_size=6000, n_epochs=1, seed=0)
    agent.learn(6000, callback=callback)
    store.delivered(callback.run)

    assert 700 <= len(store.points(callback.run, "episode/reward")) <= 1000
    assert len(store.episodes(callback.run, tmp_path)) == 6000


def test_a_tracker_that_cannot_be_built_is_an_error_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    callback = MLflowSB3Callback()
    agent = PPO("MlpPolicy", market(), **TINY)
    with pytest.raises(ConfigError, match="gopher"):
        agent.learn(32, callback=callback)

    assert agent.num_timesteps == 0
    assert callback.run is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"log_model": "last"}, "log_model"),
        ({"returns": 3}, "returns"),
        ({"returns": " "}, "returns"),
        ({"periods_per_year": 0}, "periods_per_year"),
        ({"periods_per_year": "daily"}, "periods_per_year"),
        ({"registered_model_name": "a/b"}, "registered_model_name"),
        ({"registered_model_name": "agent", "aliases": ["v1"]}, "aliases"),
        ({"aliases": ["champion"]}, "aliases"),
        ({"tracker": "team.yaml"}, "tracker"),
    ],
)
def test_wrong_configuration_is_refused_at_construction(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        MLflowSB3Callback(**arguments)

    assert refused.value.setting == named
