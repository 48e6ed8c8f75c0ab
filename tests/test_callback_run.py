"""Which run a callback writes to: its own, or one that the user started, which it never ends."""

from __future__ import annotations

import pytest

from processes import run_script
from tracking_callbacks import Delivery, MLflowTracker
from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.searches import experiment_trial


@pytest.fixture
def callback_run(tracker: MLflowTracker) -> CallbackRun:
    return CallbackRun(tracker, run_name="of the callback", tags={"by": "callback"})


def test_training_has_its_own_run(callback_run, client) -> None:
    run = callback_run.begin_training()
    run.log_metrics({"loss": 1.0})
    callback_run.end_training()
    callback_run.end_training()
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.info.run_name, stored.data.tags["by"]) == (
        *("FINISHED", "of the callback", "callback"),
    )


def test_training_twice_makes_two_runs(callback_run) -> None:
    first = callback_run.begin_training()
    callback_run.end_training()
    second = callback_run.begin_training()
    callback_run.end_training()

    assert first.run_key != second.run_key


def test_continued_training_stays_in_the_same_run(callback_run, client) -> None:
    first = callback_run.begin_training()
    callback_run.end_training()
    again = callback_run.begin_training(continues=True)
    callback_run.end_training()
    assert again.flush().complete

    assert again is first
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_is_resumed_by_its_key_from_another_process(tracker, client) -> None:
    first = CallbackRun(tracker).begin_training()
    first.log_metrics({"loss": 2.0}, step=1)
    first.end("KILLED")
    assert first.flush().complete
    other = CallbackRun(tracker)
    second = other.begin_training(resume_key=first.run_key)
    second.log_metrics({"loss": 1.0}, step=2)
    other.end_training()
    assert second.flush().complete

    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(first.run_id, "loss")] == [1, 2]


def test_an_evaluation_before_training_starts_the_run_that_training_joins(callback_run) -> None:
    evaluation = callback_run.run_for_evaluation()
    training = callback_run.begin_training()
    callback_run.end_training()
    later = callback_run.run_for_evaluation()

    assert evaluation is training is later


def test_training_that_never_ended_is_failed_when_training_starts_again(callback_run, client) -> None:
    first = callback_run.begin_training()
    second = callback_run.begin_training()
    callback_run.end_training()
    assert first.flush().complete
    assert second.flush().complete

    assert first is not second
    assert client.get_run(first.run_id).info.status == "FAILED"
    assert client.get_run(second.run_id).info.status == "FINISHED"


def test_a_run_that_the_user_entered_is_joined_and_not_ended(tracker, client) -> None:
    callback_run = CallbackRun(None)
    with tracker.start_run("of the user") as users:
        joined = callback_run.begin_training()
        callback_run.end_training()
        still_open = not users.ended
        again = callback_run.begin_training()
        callback_run.end_training()
        users.log_metrics({"after": 1.0})
    assert users.flush().complete

    assert joined is users is not again
    assert still_open
    assert client.get_run(users.run_id).data.metrics == {"after": 1.0}
    assert again.flush().complete
    nested = client.get_run(again.run_id)
    assert (nested.data.tags["mlflow.parentRunId"], nested.info.status) == (users.run_id, "FINISHED")


def test_a_checkpoint_that_is_resumed_in_the_users_run_continues_the_run_it_names(tracker, client) -> None:
    with tracker.start_run("folds") as users:
        first, second = CallbackRun(tracker), CallbackRun(tracker)
        keys = []
        for callback_run in (first, second):
            keys.append(callback_run.begin_training().run_key)
            callback_run.end_training()
        resumed = [CallbackRun(tracker).begin_training(resume_key=key) for key in keys]
        resumed[1].end()
    assert all(run.flush().complete for run in (users, second.run, resumed[1]))

    assert resumed[0] is users
    assert resumed[1].run_id == second.run.run_id
    assert client.get_run(resumed[1].run_id).data.tags["mlflow.parentRunId"] == users.run_id


def test_training_that_joined_an_active_mlflow_run_joins_it_again_when_it_is_resumed(tracker, server) -> None:
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    try:
        with mlflow.start_run() as active:
            joined = CallbackRun(tracker).begin_training()
            resumed = CallbackRun(tracker).begin_training(resume_key=joined.run_key)
        for run in (joined, resumed):
            run.end()
            assert run.flush().complete
    finally:
        mlflow.set_tracking_uri(None)

    assert joined.run_id == resumed.run_id == active.info.run_id


def test_with_the_variable_for_it_every_training_run_is_nested(tracker, client, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_NESTED_RUN", "TRUE")
    callback_run = CallbackRun(tracker)
    with tracker.start_run("of the user") as users:
        run = callback_run.begin_training()
        callback_run.end_training()
    for one in (run, users):
        assert one.flush().complete

    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == users.run_id


def test_a_second_training_run_in_an_active_mlflow_run_is_nested_in_its_experiment(
    tracker, server, client, tmp_path
) -> None:
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    try:
        experiment_id = mlflow.create_experiment(f"active {tmp_path.name}")
        runs = []
        with mlflow.start_run(experiment_id=experiment_id) as active:
            for _ in range(2):
                callback_run = CallbackRun(tracker)
                runs.append(callback_run.begin_training())
                callback_run.end_training()
        assert all(run.flush().complete for run in runs)
    finally:
        mlflow.set_tracking_uri(None)
    nested = client.get_run(runs[1].run_id)

    assert runs[0].run_id == active.info.run_id
    assert nested.data.tags["mlflow.parentRunId"] == active.info.run_id
    assert (nested.info.experiment_id, nested.info.status) == (experiment_id, "FINISHED")


def test_a_run_of_another_tracker_is_not_joined(tracker, server, shared_journal) -> None:
    other = MLflowTracker(server.uri, "another experiment", delivery=Delivery(journal_root=shared_journal))
    with tracker.start_run() as users:
        run = CallbackRun(other).begin_training()
        run.end()

    assert run is not users


def test_the_run_named_by_the_environment_is_joined_and_not_ended(tracker, client, monkeypatch) -> None:
    outer = client.create_run(client.create_experiment(f"of the environment {tracker.settings.experiment_name}"))
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    callback_run = CallbackRun(tracker)
    run = callback_run.begin_training()
    run.log_metrics({"loss": 1.0})
    callback_run.end_training()
    run.end()
    assert run.flush().complete

    stored = client.get_run(outer.info.run_id)
    assert (stored.info.status, stored.data.metrics) == ("RUNNING", {"loss": 1.0})


def test_an_active_mlflow_run_is_joined_where_it_lives(server, client, shared_journal, tmp_path) -> None:
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    try:
        elsewhere = MLflowTracker(f"sqlite:///{tmp_path}/other.db", delivery=Delivery(journal_root=shared_journal))
        callback_run = CallbackRun(elsewhere)
        with mlflow.start_run() as active:
            run = callback_run.begin_training()
            run.log_metrics({"loss": 1.0})
            callback_run.end_training()
            run.end()
            assert run.flush().complete
            while_active = client.get_run(active.info.run_id)
    finally:
        mlflow.set_tracking_uri(None)

    assert run.run_id == active.info.run_id
    assert (while_active.info.status, while_active.data.metrics) == ("RUNNING", {"loss": 1.0})
    assert not (tmp_path / "other.db").exists()


BEGINNING = """
    from tracking_callbacks import Delivery, MLflowTracker
    from tracking_callbacks._callbacks.callback_run import CallbackRun
    callback_run = CallbackRun(MLflowTracker(experiment_name={experiment!r}), run_name="first")
"""


@pytest.mark.parametrize(
    ("rest", "statuses"),
    [
        # the search caught the exception of its last trial
        ("callback_run.begin_trial('trial')", {"first": "FINISHED", "trial": "FAILED"}),
        ("callback_run.begin_trial('trial'); raise ValueError('diverged')", {"first": "FAILED", "trial": "FAILED"}),
        ("callback_run.run_for_evaluation()", {"first": "FINISHED"}),
        ("callback_run.run_for_evaluation(); callback_run.begin_training()", {"first": "KILLED"}),
    ],
    ids=["search", "search and exception", "evaluation", "evaluation and training"],
)
def test_open_runs_get_their_status_when_the_program_ends(tracker, client, server, tmp_path, rest, statuses) -> None:
    experiment = tracker.settings.experiment_name
    run_script(
        BEGINNING.format(experiment=experiment) + f"    {rest}\n",
        cwd=tmp_path,
        env={"MLFLOW_TRACKING_URI": server.uri},
    )
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])

    assert {run.info.run_name: run.info.status for run in runs} == statuses


@pytest.mark.parametrize(("at_step", "tag"), [(3, "3"), (5, None), (None, None)])
def test_a_resumed_run_says_where_it_goes_over_points_again(tracker, client, at_step, tag) -> None:
    before = tracker.start_run()
    for step in range(6):
        before.log_metrics({"loss": 1.0}, step=step)
    before.fail(ValueError("diverged"))
    resumed = tracker.resume_run(before.run_key, at_step=at_step)
    resumed.log_metrics({"loss": 0.5}, step=7)
    resumed.end()
    assert all(run.flush().complete for run in (before, resumed))

    stored = client.get_run(resumed.run_id)
    assert resumed.run_id == before.run_id
    assert stored.data.tags.get("tracking_callbacks.resumed_at_step") == tag
    assert (stored.info.status, stored.data.tags.get("tracking_callbacks.error")) == ("FINISHED", None)


def test_a_run_that_fails_again_after_its_resumption_keeps_the_last_error(tracker, client) -> None:
    callback_run = CallbackRun(tracker)
    run = callback_run.begin_training()
    run.fail(ValueError("first"))
    callback_run.begin_training(continues=True)
    run.fail(ValueError("second"))
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["tracking_callbacks.error"]) == ("FAILED", "ValueError: second")


def test_training_that_resumes_another_run_ends_the_run_of_an_evaluation(tracker, client) -> None:
    before = CallbackRun(tracker)
    earlier = before.begin_training()
    before.end_training()
    callback_run = CallbackRun(tracker)
    evaluation = callback_run.run_for_evaluation()
    resumed = callback_run.begin_training(resume_key=earlier.run_key)
    callback_run.end_training()
    assert all(run.flush().complete for run in (earlier, evaluation, resumed))

    assert resumed.run_id == earlier.run_id != evaluation.run_id
    assert client.get_run(evaluation.run_id).info.status == "FINISHED"


def test_training_after_a_search_has_its_own_run(tracker, client) -> None:
    callback_run = CallbackRun(tracker)
    trial, search = callback_run.begin_trial("only")
    callback_run.end_training()
    after = callback_run.begin_training()
    callback_run.end_training()
    assert all(run.flush().complete for run in (search, trial, after))

    stored = {run: client.get_run(run.run_id) for run in (search, trial, after)}
    assert stored[trial].data.tags["mlflow.parentRunId"] == search.run_id
    assert "mlflow.parentRunId" not in stored[after].data.tags
    assert [run.info.status for run in stored.values()] == ["FINISHED"] * 3
    assert callback_run.search is None


@pytest.mark.parametrize(
    ("trial_id", "given", "name"),
    [
        ("3f2a1_00007", "train_3f2a1_00007", "trial 7"),
        ("3f2a1_00007", "lr=0.1_3f2a1_00007", "lr=0.1_3f2a1_00007"),  # of `trial_name_creator`
        ("3f2a1_00007", "seventh", "seventh"),
        ("31415926", "train_31415926", "train_31415926"),  # of a searcher
    ],
)
def test_a_trial_of_ray_has_a_short_name_where_the_user_gives_none(trial_id: str, given: str, name: str) -> None:
    trial = experiment_trial("sweep", trial_id, given)

    assert trial.name == name
    assert trial.run_key != experiment_trial("sweep", trial_id, f"{given}1").run_key
