"""How long a run lives: a saved model continues it, and its status is correct whichever code announces the end."""

from __future__ import annotations

import copy
import csv
import io
import signal
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from markets import TINY, Market, Stop, Store, callback_for, market
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks.flavors import sb3 as flavor
from tracking_callbacks.sb3 import MLflowSB3Callback


@pytest.mark.parametrize("way", ["zip", "flavor"])
def test_a_saved_and_reloaded_model_continues_its_run(store: Store, tmp_path: Path, way: str) -> None:
    first = callback_for(store)
    agent = PPO("MlpPolicy", Monitor(Market()), **TINY).learn(64, callback=first)
    if way == "zip":
        agent.save(tmp_path / "agent.zip")
        reloaded = PPO.load(tmp_path / "agent.zip", env=Monitor(Market()))
    else:
        flavor.save_model(agent, tmp_path / "agent")
        reloaded = flavor.load_model(str(tmp_path / "agent"), env=Monitor(Market()))
    second = callback_for(store)
    reloaded.learn(32, callback=second, reset_num_timesteps=False)
    store.delivered(first.run)
    run = store.delivered(second.run)
    later = store.client.download_artifacts(run.info.run_id, "episodes_from_step_64.csv", str(tmp_path))
    rows = list(csv.DictReader(io.StringIO(Path(later).read_text(encoding="utf-8"))))

    assert second.run is not first.run
    assert run.info.run_id == first.run.run_id
    assert run.info.status == "FINISHED"
    assert [step for step, _ in store.points(second.run, "train/n_updates")] == [32, 64, 96]
    assert run.data.metrics["train/cumulative_reward"] == 960.0
    assert len(store.episodes(first.run, tmp_path)) == 6
    assert [row["episode"] for row in rows][:1] == ["7"]
    assert rows[0]["timestep"] == "74"
    assert float(rows[0]["total_return"]) == pytest.approx(Market().equities(1)[-1] / 100.0 - 1.0, rel=1e-9)


def test_a_reloaded_model_starts_a_new_run_when_it_does_not_continue(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, elsewhere = callback_for(store), callback_for(store), None
    PPO("MlpPolicy", Market(), **TINY).learn(32, callback=first).save(tmp_path / "agent.zip")
    reloaded = PPO.load(tmp_path / "agent.zip", env=Market())
    reloaded.learn(32, callback=second)
    other = MLflowTracker(
        store.tracker.settings.tracking_uri,
        "elsewhere",
        delivery=Delivery(journal_root=store.tracker.settings.journal_root),
    )
    elsewhere = callback_for(Store(other, store.client))
    reloaded.learn(32, callback=elsewhere, reset_num_timesteps=False)
    ids = {store.delivered(callback.run).info.run_id for callback in (first, second, elsewhere)}

    assert len(ids) == 3
    assert "the model's run is in experiment" in caplog.text


def test_points_stay_bounded_however_often_a_saved_model_continues(store: Store, tmp_path: Path) -> None:
    arguments = {"n_steps": 1500, "batch_size": 1500, "n_epochs": 1, "seed": 0}
    callback = callback_for(store)
    agent = PPO("MlpPolicy", market(length=1), **arguments).learn(1500, callback=callback)
    for _ in range(2):
        agent.save(tmp_path / "agent.zip")
        agent = PPO.load(tmp_path / "agent.zip", env=market(length=1))
        callback = callback_for(store)
        agent.learn(1500, callback=callback, reset_num_timesteps=False)
    store.delivered(callback.run)

    assert 800 < len(store.points(callback.run, "episode/reward")) <= 1000


def test_a_user_run_that_is_continued_after_its_block_is_ended_again(store: Store) -> None:
    callback = callback_for(store)
    agent = PPO("MlpPolicy", market(), **TINY)
    with store.tracker.start_run() as run:
        agent.learn(32, callback=callback)
    agent.learn(32, callback=callback, reset_num_timesteps=False)

    assert callback.run is run
    assert run.ended
    assert store.delivered(run).info.status == "FINISHED"
    assert [step for step, _ in store.points(run, "train/n_updates")] == [32, 64]


class Interrupt(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps >= 40:
            signal.raise_signal(signal.SIGINT)
        return True


def learn_as_the_zoo_does(agent: PPO, steps: int, callbacks: list[Any]) -> None:
    """As ``rl_zoo3.exp_manager.ExperimentManager.learn`` (2.9): it swallows Ctrl-C and announces the end again."""
    try:
        agent.learn(steps, callback=callbacks)
    except KeyboardInterrupt:
        pass
    finally:
        callbacks[0].on_training_end()


@pytest.mark.parametrize(
    ("trouble", "status"),
    [(None, "FINISHED"), (Interrupt, "KILLED"), (lambda: Stop(40, RuntimeError("burst")), "FAILED")],
    ids=["none", "ctrl-c", "exception"],
)
def test_the_status_is_correct_when_other_code_announces_the_end(store: Store, trouble: Any, status: str) -> None:
    callback = callback_for(store, log_model=True)
    callbacks = [callback, *([trouble()] if trouble else [])]
    agent = PPO("MlpPolicy", market(), **TINY)
    if status == "FAILED":
        with pytest.raises(RuntimeError, match="burst"):
            learn_as_the_zoo_does(agent, 64, callbacks)
    else:
        learn_as_the_zoo_does(agent, 64, callbacks)
    run = store.delivered(callback.run)

    assert run.info.status == status
    (model,) = run.outputs.model_outputs
    tags = store.client.get_logged_model(model.model_id).tags
    stopped_by = {"FINISHED": None, "KILLED": "KeyboardInterrupt", "FAILED": "RuntimeError"}
    assert tags.get("tracking_callbacks.interrupted") == stopped_by[status]
    if status == "FAILED":
        assert run.data.tags["tracking_callbacks.error"] == "RuntimeError: burst"
    said = {"KILLED": ["Training was stopped by Ctrl-C"], "FAILED": ["Training failed: RuntimeError: burst"]}
    warnings = [line[4:] for line in run.data.tags["mlflow.note.content"].splitlines() if line.startswith("- ⚠ ")]
    assert warnings == said.get(status, [])


def test_training_that_was_interrupted_is_killed_at_once_whatever_callback_comes_next(store: Store) -> None:
    class Subclass(PPO):  # defined after the first callback, and it never calls PPO.learn
        def learn(self, total_timesteps: int, callback: Any = None, **kwargs: Any) -> Any:
            return OnPolicyAlgorithm.learn(self, total_timesteps, callback, **kwargs)

    statuses = []
    for kind in (PPO, Subclass):
        callback = callback_for(store, log_model=True)
        agent = kind("MlpPolicy", market(), **TINY)
        with pytest.raises(KeyboardInterrupt):
            agent.learn(64, callback=[callback, Interrupt()])
        stopped = store.delivered(callback.run)
        another = callback_for(store)
        agent.learn(32, callback=another)
        statuses += [stopped.info.status, store.delivered(another.run).info.status]
        assert len(store.points(callback.run, "train/n_updates")) == 1

    assert statuses == ["KILLED", "FINISHED"] * 2


def test_training_inside_an_exception_handler_gives_a_finished_run(store: Store) -> None:
    callback = callback_for(store)
    try:
        raise ValueError("the first attempt")
    except ValueError:
        PPO("MlpPolicy", market(), **TINY).learn(96, callback=[callback, Stop(at=70)])

    assert store.delivered(callback.run).info.status == "FINISHED"


def test_the_zoos_yaml_builds_a_callback_that_logs_once(store: Store) -> None:
    import importlib

    import yaml

    text = """
    callback:
      - tracking_callbacks.sb3.MLflowSB3Callback:
          registered_model_name: from-the-zoo
          aliases: [champion]
          returns: portfolio_value
    """
    # As rl_zoo3.utils.get_callback_list does it.
    ((name, arguments),) = yaml.safe_load(text)["callback"][0].items()
    module, _, cls = name.rpartition(".")
    settings = store.tracker.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", settings.experiment_name)
        patch.setenv("TRACKING_CALLBACKS_JOURNAL", str(settings.journal_root))
        callback = getattr(importlib.import_module(module), cls)(**arguments)
        learn_as_the_zoo_does(PPO("MlpPolicy", market(), **TINY), 32, [callback])
        run = store.delivered(callback.run)

    assert run.info.status == "FINISHED"
    assert len(store.client.search_model_versions("name='from-the-zoo'")) == 1
    assert len(store.points(callback.run, "train/n_updates")) == 1


def test_each_learn_whose_run_cannot_be_opened_says_so_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MLflowTracker):
        def start_run(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no run today")

    callback = MLflowSB3Callback(Broken(store.tracker.settings.tracking_uri))
    agent = PPO("MlpPolicy", Market(), **TINY)
    heard = []
    for _ in range(2):
        caplog.clear()
        agent.learn(64, callback=callback)
        heard.append([record.message for record in caplog.records if record.levelname == "ERROR"])

    assert agent.num_timesteps == 64
    assert ["_begin_training" in message for message in heard[0]] == [True]
    assert heard[1] == heard[0]


def test_each_learn_says_once_that_its_callable_for_returns_fails(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(info: Any, reward: float) -> float:
        raise LookupError("no price")

    callback = callback_for(store, returns=failing)
    agent = PPO("MlpPolicy", Market(), **TINY)
    heard = []
    for _ in range(2):
        caplog.clear()
        agent.learn(32, callback=callback)
        heard.append([record.message for record in caplog.records if record.levelname == "ERROR"])
        store.delivered(callback.run)

    assert ["step_return" in message for message in heard[0]] == [True]
    assert heard[1] == heard[0]


def test_a_model_copied_in_training_is_independent_of_the_run(store: Store, tmp_path: Path) -> None:
    opponents: list[PPO] = []

    class SelfPlay(BaseCallback):
        def _on_rollout_end(self) -> None:
            model = self.model
            assert isinstance(model, PPO)
            opponents[:] = [copy.deepcopy(model), cloudpickle.loads(cloudpickle.dumps(model))]
            model.save(tmp_path / "opponent.zip", include=["_logger"])
            opponents.append(PPO.load(tmp_path / "opponent.zip", env=market()))
            for opponent in opponents:
                opponent.predict(np.zeros(model.observation_space.shape or (), np.float32))

        def _on_step(self) -> bool:
            return True

    callback = callback_for(store)
    evaluation = EvalCallback(market(), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", market(), **TINY).learn(64, callback=[evaluation, callback, SelfPlay()])
    for opponent in opponents:
        opponent.learn(32)
    store.delivered(callback.run)

    assert [step for step, _ in store.points(callback.run, "time/iterations")] == [32, 64]
    for opponent in opponents:
        again = callback_for(store)
        opponent.learn(32, callback=again)
        assert not [one for one in opponent.logger.output_formats if type(one).__name__ == "SilentWriter"]
        assert again.run is not None
        assert callback.run is not None
        assert again.run.run_key != callback.run.run_key
        store.delivered(again.run)


def test_callbacks_and_runs_copy_and_pickle_during_training(store: Store) -> None:
    copies: list[Any] = []

    class Copy(BaseCallback):
        def _on_rollout_end(self) -> None:
            for one in (callback, callback._callback_run.tracker):
                copies.extend([copy.deepcopy(one), cloudpickle.loads(cloudpickle.dumps(one))])

        def _on_step(self) -> bool:
            return True

    callback = callback_for(store)
    evaluation = EvalCallback(market(), eval_freq=32, n_eval_episodes=1, verbose=0)
    PPO("MlpPolicy", market(), **TINY).learn(32, callback=[evaluation, callback, Copy()])
    run = callback.run
    store.delivered(run)

    assert len(copies) == 4
    assert [one.run for one in copies if hasattr(one, "returns")] == [None, None]
    assert copy.deepcopy({"run": run}) == {"run": run}
    with pytest.raises(TypeError, match="a Run cannot be pickled"):
        cloudpickle.dumps(run)
