"""``learn()`` returns when the model that it registers is registered, and does not wait in vain."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import pytest
from markets import TINY, Store, callback_for, market
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor

from faults.proxy import Fault, running_proxy
from processes import free_port, run_script
from tracking_callbacks import Delivery, MLflowTracker, Promotion
from tracking_callbacks.sb3 import MLflowSB3Callback


def test_the_model_can_be_loaded_on_the_line_after_learn(store: Store, tmp_path, capsys) -> None:
    name = f"desk-{tmp_path.name}"
    callback = callback_for(store, log_model=True, registered_model_name=name, aliases=["champion", "latest-desk"])
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=callback)
    version = store.client.get_model_version_by_alias(name, "champion")
    printed = capsys.readouterr().err

    assert str(version.version) == "1"
    assert store.client.get_model_version_by_alias(name, "latest-desk").run_id == version.run_id
    assert (
        f"tracking_callbacks: {name} version 1 @champion @latest-desk from run {callback.run.url} (FINISHED)" in printed
    )


def test_only_the_better_agent_becomes_champion(store: Store, tmp_path) -> None:
    name = f"desk-{tmp_path.name}"
    for score in (1.0, 2.0, 0.5):
        evaluation = EvalCallback(Monitor(Scored(score)), eval_freq=32, verbose=0)
        callback = callback_for(
            store,
            log_model="best",
            registered_model_name=name,
            promote=Promotion("champion", by="eval/mean_reward", data="the same game"),
        )
        PPO("MlpPolicy", Scored(score), **TINY).learn(64, callback=[evaluation, callback])
        store.delivered(callback.run)
    outcomes = {
        version.version: version.tags["tracking_callbacks.promotion.outcome"]
        for version in store.client.search_model_versions(f"name='{name}'")
    }

    assert str(store.client.get_model_version_by_alias(name, "champion").version) == "2"
    assert outcomes["2"] == "champion: eval/mean_reward 20 is better than 10 of version 1, on the same data"
    assert outcomes["3"] == "not champion: eval/mean_reward 5 is not better than 20 of version 2, on the same data"


class Scored(gym.Env):
    """A game of ten steps that brings the same score in each."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, score: float) -> None:
        self.score, self.steps = score, 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), self.score, False, self.steps == 10, {}


def test_training_without_a_registered_model_says_and_waits_for_nothing(store: Store, capsys) -> None:
    with running_proxy(store.tracker.settings.tracking_uri) as proxy:
        callback = MLflowSB3Callback(MLflowTracker(proxy.uri, "unregistered", delivery=store.tracker.settings.delivery))
        proxy.fault(Fault("hang"))
        PPO("MlpPolicy", market(), **TINY).learn(64, callback=callback)

        assert callback.run.report().pending
        assert "tracking_callbacks:" not in capsys.readouterr().err
        proxy.fault()
        store.delivered(callback.run)


@pytest.mark.parametrize("answer", ["absent", "refusing"])
def test_a_store_that_does_not_answer_is_not_waited_for(answer: str, store: Store, tmp_path, capsys) -> None:
    with running_proxy(store.tracker.settings.tracking_uri) as proxy:
        proxy.fault(Fault("answer", statuses=(503,)))
        uri = proxy.uri if answer == "refusing" else f"http://127.0.0.1:{free_port()}"
        delivery = Delivery(journal_root=tmp_path / "journal", wait_at_end=100, flush_timeout=1, grace=0)
        callback = MLflowSB3Callback(
            MLflowTracker(uri, "absent", delivery=delivery), registered_model_name="desk", aliases=["champion"]
        )
        began = time.monotonic()
        PPO("MlpPolicy", market(), **TINY).learn(64, callback=callback)

        assert time.monotonic() - began < 60
        assert "desk is not registered yet (" in capsys.readouterr().err


def test_a_wait_that_timed_out_is_not_repeated_at_exit(tmp_path) -> None:
    done = run_script(
        f"""
        import time
        from tracking_callbacks import Delivery, MLflowTracker
        delivery = Delivery(flush_timeout=6, grace=0)
        with MLflowTracker("http://127.0.0.1:{free_port()}", delivery=delivery).start_run() as run:
            run.log_metrics({{"loss": 1.0}})
        run.flush()
        print(time.time())
        """,
        cwd=tmp_path,
    )
    lasted = time.time() - float(done.stdout)

    assert done.stderr.count("not delivered after 6 s") == 1
    assert "delivery goes on in the background" in done.stderr
    assert lasted < 5, "the exit waited again"
