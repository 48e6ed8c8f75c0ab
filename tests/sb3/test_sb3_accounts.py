"""How an agent's account is read from rewards, infos and memories, and judged against a market."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from markets import TINY, Store, callback_for
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor

from processes import run_script
from tracking_callbacks import finance
from tracking_callbacks.errors import ConfigError
from tracking_callbacks.sb3 import MLflowSB3Callback

DAYS = 40


class Paying(gym.Env):
    """An environment whose rewards say something of an account that follows a fixed path."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str = "equity_reward") -> None:
        self.kind = kind
        self.returns = np.random.default_rng(8).normal(0.001, 0.02, DAYS)
        self.account = 1e6 * np.concatenate(([1.0], np.cumprod(1.0 + self.returns)))
        self.day = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.day = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.day += 1
        before, after = self.account[self.day - 1], self.account[self.day]
        rewards = {"equity_reward": after, "pnl": after - before, "log": math.log(after / before)}
        return np.zeros(2, np.float32), float(rewards[self.kind]), False, self.day == DAYS, {}


@pytest.mark.parametrize("kind", ["equity_reward", "pnl", "log"])
def test_rewards_that_say_what_became_of_the_account_give_its_returns(store: Store, kind: str) -> None:
    callback = callback_for(store, returns=kind, initial_account=1e6)
    PPO("MlpPolicy", Monitor(Paying(kind)), **TINY).learn(64, callback=callback)
    run = store.delivered(callback.run)
    returns = Paying().returns

    # SB3's vectorized environments round rewards to 32 bits.
    assert run.data.metrics["episode/sharpe_ratio"] == pytest.approx(finance.sharpe_ratio(returns), rel=1e-5)
    assert run.data.metrics["episode/total_return"] == pytest.approx(finance.total_return(returns), rel=1e-5)
    assert run.data.params["sharpe.source"] == f"reward ({kind})"


def test_an_account_value_as_reward_gives_no_ratio_and_the_run_says_why(store: Store) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", Monitor(Paying()), **TINY).learn(64, callback=callback)
    run = store.delivered(callback.run)

    assert not [name for name in run.data.metrics if "sharpe" in name]
    assert "positive and far above their deviation" in run.data.tags["sharpe.skipped"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"returns": "pnl"}, "initial_account: returns='pnl' needs"),
        ({"initial_account": -1.0}, "initial_account: expected a positive number"),
        ({"initial_account": "much"}, "initial_account: expected a positive number"),
        ({"benchmark": [1.0]}, "benchmark: expected 'auto'"),
        ({"benchmark": 3}, "benchmark: expected 'auto'"),
        ({"trials": 0}, "trials: expected a positive whole number"),
        ({"log_model_every": 1.5}, "log_model_every: expected a positive whole number"),
        ({"best_by": ""}, "best_by: expected"),
    ],
)
def test_what_cannot_be_used_is_refused_at_construction(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MLflowSB3Callback(**arguments)


class Remembering(Paying):
    """FinRL's contract (0.3.7): empty infos, scaled money as reward, and lists that the environment keeps itself."""

    def __init__(self, *, portfolio: bool) -> None:
        super().__init__("pnl")
        self.portfolio = portfolio
        self._begin()

    def _begin(self) -> None:
        self.asset_memory = [1e6]
        if self.portfolio:
            self.portfolio_return_memory = [0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._begin()
        return super().reset()

    def step(self, action: Any) -> Any:
        seen, reward, _, _, info = super().step(action)
        self.asset_memory.append(self.account[self.day])
        if self.portfolio:
            self.portfolio_return_memory.append(self.returns[self.day - 1])
        return seen, reward * 1e-4, self.day == DAYS, False, info


@pytest.mark.parametrize("portfolio", [False, True], ids=["StockTradingEnv", "StockPortfolioEnv"])
def test_the_ratio_of_finrls_environments_is_finrls(store: Store, portfolio: bool) -> None:
    callback = callback_for(store)
    PPO("MlpPolicy", Monitor(Remembering(portfolio=portfolio)), **TINY).learn(96, callback=callback)
    run = store.delivered(callback.run)
    account = pd.DataFrame({"account_value": Paying().account})
    daily = pd.Series([0, *Paying().returns]) if portfolio else account["account_value"].pct_change(1)
    formula = (252**0.5) * daily.mean() / daily.std()  # as FinRL writes it

    assert [value for _, value in store.points(callback.run, "episode/sharpe_ratio")] == pytest.approx([formula] * 2)
    assert run.data.params["sharpe.source"] == f"env:{'portfolio_return_memory' if portfolio else 'asset_memory'}"
    assert run.data.metrics["episode/total_return"] == pytest.approx(finance.total_return(Paying().returns))


class Market(gym.Env):
    """A market with fees; the account holds the stock on every third day."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 60) -> None:
        self.length = length
        self.prices = 50.0 * np.cumprod(
            np.concatenate(([1.0], 1.0 + np.random.default_rng(4).normal(0.0, 0.02, length)))
        )
        self.dates = [str(day)[:10] for day in pd.bdate_range("2020-01-01", periods=length + 1)]

    def _info(self, fee: float = 0.0) -> dict[str, Any]:
        return {
            "portfolio_value": self.account,
            "position": self.position,
            "price": self.prices[self.day],
            "fee": fee,
            "date": self.dates[self.day],
            "index": 2.0 * self.prices[self.day],
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.day, self.account, self.position = 0, 100.0, 0.0
        return np.zeros(2, np.float32), self._info()

    def step(self, action: Any) -> Any:
        before = self.position
        self.position = float(self.day % 3 == 0)
        fee = 0.01 * abs(self.position - before)
        self.day += 1
        self.account *= 1.0 + self.position * (self.prices[self.day] / self.prices[self.day - 1] - 1.0)
        self.account -= fee
        return np.zeros(2, np.float32), 0.0, False, self.day == self.length, self._info(fee)


def played(env: Market) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    env.reset()
    accounts, positions, fees = [env.account], [], []
    for _ in range(env.length):
        _, _, _, _, info = env.step(0)
        accounts.append(info["portfolio_value"])
        positions.append(info["position"])
        fees.append(info["fee"])
    return finance.returns_from_equity(accounts), np.array(positions), np.array(fees)


@pytest.mark.parametrize("benchmark", ["auto", "index", lambda info: 3.0 * info["price"], "series"])
def test_an_evaluation_is_judged_against_the_market(store: Store, tmp_path: Path, benchmark: Any) -> None:
    env = Market()
    given = env.prices if benchmark == "series" else benchmark
    callback = callback_for(store, benchmark=given, trials=20)
    evaluation = EvalCallback(Monitor(Market()), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", Monitor(Market()), **TINY).learn(32, callback=[callback, evaluation])
    run = store.delivered(callback.run)
    returns, positions, fees = played(env)
    market = finance.returns_from_equity(env.prices)
    trades = finance.trades_from_positions(positions, returns=returns, prices=env.prices)
    expected = finance.performance(returns, benchmark=market)
    expected |= finance.trade_statistics(trades, positions, fees=fees)
    expected["sharpe_standard_error"] = finance.sharpe_standard_error(returns)
    expected["deflated_sharpe_ratio"] = finance.deflated_sharpe_ratio(returns, trials=20)

    found = {name: run.data.metrics.get(f"eval/{name}") for name in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert {"alpha", "beta", "information_ratio", "benchmark_total_return", "win_rate", "fees"} <= found.keys()
    place = "evaluation/eval/step-32"
    artifacts = {Path(entry.path).name for entry in store.client.list_artifacts(run.info.run_id, place)}
    assert {"tear_sheet.html", "performance.png", "monthly_returns.png", "trades.csv", "trades.json"} <= artifacts
    path = store.client.download_artifacts(run.info.run_id, f"{place}/trades.csv", str(tmp_path))
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert len(rows) == len(trades) == 20
    assert rows[0]["entry"] == env.dates[1]
    assert float(rows[0]["return"]) == pytest.approx(trades[0].total_return)


ERRORS = ("sharpe_standard_error", "sharpe_adjusted_error", "probabilistic_sharpe_ratio", "deflated_sharpe_ratio")


@pytest.mark.parametrize("known", ["dates", "prices", "nothing but the account"])
def test_repeating_the_test_period_makes_no_evaluation_surer_and_changes_no_figure(store: Store, known: str) -> None:
    left_out = {"dates": {"price"}, "prices": {"date"}, "nothing but the account": {"price", "date"}}[known]

    class Known(Market):
        def _info(self, fee: float = 0.0) -> dict[str, Any]:
            return {key: value for key, value in super()._info(fee).items() if key not in left_out}

    figures = []
    for count in (1, 5):
        callback = callback_for(store, trials=20, benchmark=None)
        evaluation = EvalCallback(Monitor(Known()), eval_freq=32, n_eval_episodes=count, verbose=0)
        PPO("MlpPolicy", Monitor(Known()), **TINY).learn(32, callback=[callback, evaluation])
        metrics = store.delivered(callback.run).data.metrics
        figures.append({name: value for name, value in metrics.items() if name.startswith("eval/")})
    once, often = figures

    assert {f"eval/{name}" for name in (*ERRORS, "trades", "fees", "turnover")} <= once.keys()
    # The deviations of all returns together, with ddof=1, differ a little.
    assert often == pytest.approx(once, rel=0.02)


def test_a_tear_sheet_is_one_page_that_opens_offline(store: Store, tmp_path: Path) -> None:
    callback = callback_for(store)
    evaluation = EvalCallback(Monitor(Market(400)), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", Monitor(Market(400)), **TINY).learn(32, callback=[callback, evaluation])
    run = store.delivered(callback.run)
    path = store.client.download_artifacts(run.info.run_id, "evaluation/eval/step-32/tear_sheet.html", str(tmp_path))
    page = Path(path).read_text(encoding="utf-8")

    assert len(page.encode()) < 1_500_000
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 5
    assert "400 steps, 2020-01-02 to" in page
    assert "Sharpe ratio" in page
    assert "Benchmark&#x27;s total return" in page


def test_without_a_known_account_an_evaluation_has_no_tear_sheet(store: Store) -> None:
    class Plain(Paying):
        def step(self, action: Any) -> Any:
            seen, _, terminated, truncated, info = super().step(action)
            return seen, float(np.sin(self.day * 7.0)), terminated, truncated, info

    callback = callback_for(store)
    evaluation = EvalCallback(Monitor(Plain()), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", Monitor(Plain()), **TINY).learn(32, callback=[callback, evaluation])
    run = store.delivered(callback.run)

    names = {name for name in run.data.metrics if name.startswith("eval/")}
    assert names & {"eval/sharpe_ratio", "eval/total_return", "eval/alpha"} == {"eval/sharpe_ratio"}
    assert store.client.list_artifacts(run.info.run_id, "evaluation") == []


def test_the_best_agent_may_be_chosen_by_a_statistic_and_its_evaluation_is_shown(store: Store) -> None:
    class Drifting(Market):
        """The second of three evaluations has the highest Sharpe ratio, and the third the highest reward."""

        evaluations = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            type(self).evaluations += 1
            return super().reset()

        def step(self, action: Any) -> Any:
            seen, _, terminated, truncated, info = super().step(action)
            # Every second reset is the one that follows an episode.
            drift = {1: 0.0, 3: 0.01, 5: 0.002}[type(self).evaluations]
            info["portfolio_value"] *= math.exp(drift * self.day)
            return seen, float(type(self).evaluations), terminated, truncated, info

    callback = callback_for(store, log_model="best", best_by="sharpe_ratio")
    evaluation = EvalCallback(Monitor(Drifting()), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", Monitor(Market()), **TINY).learn(96, callback=[callback, evaluation])
    run = store.delivered(callback.run)
    shown = {entry.path for entry in store.client.list_artifacts(run.info.run_id, "evaluation/eval")}

    (output,) = run.outputs.model_outputs
    assert output.step == 64
    assert run.data.tags["tracking_callbacks.model_choice"].startswith("best: sharpe ratio ")
    assert shown == {"evaluation/eval/step-64", "evaluation/eval/step-96"}


IMPORTS = """
import json, sys
sys.path.insert(0, {tests!r})
from markets import TINY, market
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from tracking_callbacks.sb3 import MLflowSB3Callback

class Loaded(BaseCallback):
    seen = []
    def _on_step(self):
        self.seen.append("empyrical" in sys.modules)
        return True

evaluation = [EvalCallback(market(equity_key={key!r}), eval_freq=32, verbose=0)] if {evaluated} else []
PPO("MlpPolicy", market(equity_key={key!r}), **TINY).learn(
    64, callback=[Loaded(), MLflowSB3Callback(log_model=False), *evaluation]
)
print(json.dumps([Loaded.seen[0], Loaded.seen[-1]]))
"""


@pytest.mark.parametrize(
    ("key", "evaluated", "loaded"),
    [("portfolio_value", True, True), ("portfolio_value", False, False), (None, True, False)],
    ids=["an account that is evaluated", "an account without evaluations", "rewards alone"],
)
def test_the_library_of_statistics_is_loaded_before_the_first_step_or_never(
    tmp_path: Path, key: str | None, evaluated: bool, loaded: bool
) -> None:
    code = IMPORTS.format(tests=str(Path(__file__).parent), key=key, evaluated=evaluated)
    done = run_script(code, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"})

    assert json.loads(done.stdout.splitlines()[-1]) == [loaded, loaded], done.stderr
