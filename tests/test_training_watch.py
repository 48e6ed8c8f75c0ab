"""How the end of training is seen from outside: the wrapped method behaves, and looks, as it did before."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import textwrap
import threading
import traceback

import pytest

from processes import run_script, wait_for
from tracking_callbacks import MLflowTracker
from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.training_watch import current_call, watch_method


class Framework:
    """Calls its callback as a framework does, and then lets `work` do the training."""

    def fit(self, begin, work=lambda: None, *, end=lambda: None) -> str:
        """Train."""
        begin()
        work()
        end()
        return "trained"


class Override(Framework):
    def fit(self, begin, work=lambda: None, *, end=lambda: None) -> str:
        return super().fit(begin, work, end=end)


def fail(error: BaseException):
    def work() -> None:
        raise error

    return work


def frames_of(call) -> list[str]:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - whatever it is, its frames are compared
        return [f"{frame.name} {frame.line}" for frame in traceback.extract_tb(error.__traceback__)]
    return []


def failing_fit() -> None:
    Override().fit(lambda: None, fail(ValueError("x")))


def fit_without_arguments() -> None:
    Framework().fit()  # type: ignore[call-arg]


before = {
    "signature": inspect.signature(Framework.fit),
    "doc": Framework.fit.__doc__,
    "frames": frames_of(failing_fit),
    "wrong arguments": frames_of(fit_without_arguments),
}
watch_method(Framework, "fit")


def test_the_method_looks_as_before() -> None:
    assert inspect.signature(Framework.fit) == before["signature"]
    assert (Framework.fit.__doc__, Framework.fit.__qualname__) == (before["doc"], "Framework.fit")
    assert pickle.loads(pickle.dumps(Override.fit)) is Override.fit
    assert copy.deepcopy(Override()).fit(lambda: None) == "trained"


def test_a_class_that_is_pickled_by_value_takes_its_method_along() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    here: dict[str, type] = {"Framework": Framework}
    exec("class Typed(Framework):\n    def fit(self, begin): return begin()", here | {"__name__": "__main__"}, here)
    copied = cloudpickle.loads(cloudpickle.dumps(here["Typed"]))

    assert copied().fit(current_call) is not None


def test_an_exception_keeps_its_traceback_context_and_identity() -> None:
    error = ValueError("x")
    with pytest.raises(ValueError, match="x") as caught:
        Override().fit(lambda: None, fail(error))

    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert frames_of(failing_fit) == before["frames"]
    assert frames_of(fit_without_arguments) == before["wrong arguments"]


def test_watching_twice_wraps_once() -> None:
    method, hook = Framework.fit, vars(Framework)["__init_subclass__"]
    watch_method(Framework, "fit")

    assert Framework.fit is method
    assert vars(Framework)["__init_subclass__"] is hook


def test_a_subclass_of_later_is_watched_and_keeps_its_own_hook() -> None:
    seen = []

    class Later(Framework):
        def __init_subclass__(cls, *, label: str, **kwargs: object) -> None:
            super().__init_subclass__(**kwargs)
            seen.append(label)

    class Own(Later, label="own"):
        def fit(self, begin, work=lambda: None, *, end=lambda: None) -> str:  # never calls super()
            begin()
            return "own"

    calls = []
    result = Own().fit(lambda: calls.append(current_call()))

    assert (result, seen) == ("own", ["own"])
    assert calls[0] is not None
    assert current_call() is None


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("diverged"), "FAILED", "ValueError: diverged"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(0), "KILLED", None),
    ],
    ids=["exception", "ctrl-c", "exit"],
)
def test_training_whose_exception_is_caught_has_its_status_at_once(tracker, client, error, status, line) -> None:
    callback_run = CallbackRun(tracker)
    with pytest.raises(type(error)):
        Override().fit(callback_run.begin_training, fail(error))
    run = callback_run.run
    assert run.flush().complete

    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags.get("tracking_callbacks.error")) == (status, line)
    assert not callback_run.training


def test_a_pruned_trial_is_killed_without_an_error(tracker, client) -> None:
    optuna = pytest.importorskip("optuna")
    callback_run = CallbackRun(tracker)
    with pytest.raises(optuna.TrialPruned):
        Framework().fit(callback_run.begin_training, fail(optuna.TrialPruned("no good")))
    assert callback_run.run.flush().complete

    stored = client.get_run(callback_run.run.run_id)
    assert stored.info.status == "KILLED"
    assert stored.data.tags["tracking_callbacks.pruned"] == "true"
    assert "tracking_callbacks.error" not in stored.data.tags


def test_training_that_returns_without_announcing_its_end_is_finished(tracker, client) -> None:
    callback_run = CallbackRun(tracker)
    Framework().fit(callback_run.begin_training)
    assert callback_run.run.flush().complete

    assert client.get_run(callback_run.run.run_id).info.status == "FINISHED"


def test_an_exception_after_the_announced_end_does_not_change_the_status(tracker, client) -> None:
    callback_run = CallbackRun(tracker)

    def end() -> None:
        callback_run.end_training()
        raise ValueError("after training")

    with pytest.raises(ValueError, match="after training"):
        Framework().fit(callback_run.begin_training, end=end)
    assert callback_run.run.flush().complete

    assert client.get_run(callback_run.run.run_id).info.status == "FINISHED"


def test_a_run_that_the_user_started_is_left_to_the_user(tracker, client) -> None:
    with tracker.start_run() as users:
        callback_run = CallbackRun(tracker)
        with pytest.raises(ValueError, match="caught"):
            Framework().fit(callback_run.begin_training, fail(ValueError("caught")))
        assert not users.ended
    assert users.flush().complete

    assert client.get_run(users.run_id).info.status == "FINISHED"


def test_inner_training_ends_its_own_run_only(tracker, client) -> None:
    outer, inner = CallbackRun(tracker), CallbackRun(tracker)

    def play_itself() -> None:
        with pytest.raises(ValueError, match="inner"):
            Framework().fit(inner.begin_training, fail(ValueError("inner")))
        assert outer.training

    Framework().fit(outer.begin_training, play_itself)
    statuses = []
    for run in (outer.run, inner.run):
        assert run.flush().complete
        statuses.append(client.get_run(run.run_id).info.status)

    assert statuses == ["FINISHED", "FAILED"]


def test_training_that_fails_in_a_thread_fails_its_run(tracker, client) -> None:
    callback_run = CallbackRun(tracker)
    seen = []

    def train() -> None:
        try:
            Framework().fit(callback_run.begin_training, fail(ValueError("in a thread")))
        except ValueError as error:
            seen.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(30)
    assert callback_run.run.flush().complete

    assert len(seen) == 1
    assert client.get_run(callback_run.run.run_id).info.status == "FAILED"


def test_a_child_that_is_forked_in_a_hook_and_fails_leaves_its_parents_run_alone(tracker, client) -> None:
    callback_run = CallbackRun(tracker)

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            raise ValueError("in the child")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        callback_run.run.log_metrics({"after": 1.0})

    try:
        Framework().fit(callback_run.begin_training, fork)
    except ValueError:
        os._exit(7)
    assert callback_run.run.flush().complete

    stored = client.get_run(callback_run.run.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"after": 1.0})
    assert "tracking_callbacks.error" not in stored.data.tags


def test_a_search_ends_with_the_call_around_its_trials(tracker: MLflowTracker, client) -> None:
    class Search(Framework):
        def search(self, trials) -> None:
            for number, work in enumerate(trials):
                try:
                    self.study(lambda number=number, work=work: self.fit(lambda: begin(f"trial-{number}"), work))
                except ValueError:
                    failed.append(number)

        def study(self, train) -> None:
            train()

    def begin(name: str) -> None:
        callback_run.begin_trial(name, current_call().around("search"))

    watch_method(Search, "search")
    watch_method(Search, "study")  # as Optuna's is, once its callback is imported
    failed: list[int] = []
    callback_run = CallbackRun(tracker, run_name="search")
    Search().search([lambda: None, fail(ValueError("diverged"))])
    assert callback_run.search is None

    def statuses() -> dict[str, str]:
        experiment = client.get_experiment_by_name(tracker.settings.experiment_name)
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
        return {run.info.run_name: run.info.status for run in runs}

    expected = {"search": "FINISHED", "trial-0": "FINISHED", "trial-1": "FAILED"}
    assert wait_for(lambda: statuses() == expected, f"the statuses are {expected}")
    assert failed == [1]


MULTIPROCESSING = """
    import multiprocessing

    from tracking_callbacks import MLflowTracker
    from tracking_callbacks._callbacks.callback_run import CallbackRun
    from tracking_callbacks._callbacks.training_watch import watch_method


    class Framework:
        def fit(self, begin):
            begin()
            raise RuntimeError("in training")


    def train():
        watch_method(Framework, "fit")
        Framework().fit(CallbackRun(MLflowTracker(), run_name="training").begin_training)


    def log():
        MLflowTracker().start_run("core").log_metrics({"loss": 1.0})
        raise RuntimeError("in the core")


    if __name__ == "__main__":
        for method in ("fork", "spawn"):
            for work in (train, log):
                child = multiprocessing.get_context(method).Process(target=work)
                child.start()
                child.join()
                print(child.exitcode)
"""


def test_children_of_multiprocessing_that_fail_have_failed_runs(server, client, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}
    (tmp_path / "children.py").write_text(textwrap.dedent(MULTIPROCESSING))  # `spawn` imports the main module's file
    start = "import subprocess, sys; subprocess.run([sys.executable, 'children.py'], check=True)"
    done = run_script(start, cwd=tmp_path, env=env, timeout=120)
    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    found = sorted((run.info.run_name, run.info.status, run.data.tags["tracking_callbacks.error"]) for run in runs)

    assert done.stdout.split() == ["1"] * 4, done.stderr
    assert found == [
        *[("core", "FAILED", "RuntimeError: in the core")] * 2,
        *[("training", "FAILED", "RuntimeError: in training")] * 2,
    ]


NOTEBOOK = """
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    for cell in {cells!r}:
        shell.run_cell(cell)
"""
CELLS = [
    """
from tracking_callbacks import MLflowTracker
from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.training_watch import watch_method
class Framework:
    def fit(self, begin, error):
        begin()
        raise error
watch_method(Framework, "fit")
tracker = MLflowTracker()
interrupted, failed = CallbackRun(tracker, run_name="interrupted"), CallbackRun(tracker, run_name="failed")
core = tracker.start_run("core")
""",
    "Framework().fit(interrupted.begin_training, KeyboardInterrupt())",
    "1 / 0",
    "Framework().fit(failed.begin_training, ValueError('diverged'))",
    "print(failed.run.flush().complete, failed.run.ended, interrupted.run.ended)",
    "tracker.start_run('core, and its own cell fails'); raise LookupError('here')",
    "a_typo",
]


def test_a_later_cell_of_a_notebook_says_nothing_about_a_run(server, client, tmp_path) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": tmp_path.name, "IPYTHONDIR": str(tmp_path)}
    done = run_script(NOTEBOOK.format(cells=CELLS), cwd=tmp_path, env=env, timeout=120)
    runs = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    found = {run.info.run_name: (run.info.status, run.data.tags.get("tracking_callbacks.error")) for run in runs}

    assert "True True True" in done.stdout, done.stdout + done.stderr
    assert found == {
        "interrupted": ("KILLED", "KeyboardInterrupt"),
        "failed": ("FAILED", "ValueError: diverged"),
        "core": ("KILLED", None),
        "core, and its own cell fails": ("KILLED", None),  # the last exception is that of a later cell
    }
