"""What the environment of a program says already, by MLflow's variables and by those of transformers' callback."""

from __future__ import annotations

import os
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import delivery_processes, run_script, wait_for
from tracking_callbacks import ConfigError, Delivery, MLflowTracker
from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks._callbacks.description import Description, log_description
from tracking_callbacks._values.names import check_aliases, check_registered_model_name
from tracking_callbacks.settings import resolve_settings


@pytest.fixture
def bare(server, shared_journal, monkeypatch):
    """Build a tracker that is given no experiment, on the test's server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return lambda **given: MLflowTracker(delivery=Delivery(journal_root=shared_journal), **given)


# -- which experiment, which name ------------------------------------------------------------------------------------


@pytest.fixture
def active_experiment(monkeypatch) -> None:
    """Undo what ``mlflow.set_experiment`` sets: a variable of the environment and one of MLflow's own."""
    from mlflow.tracking import fluent

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    monkeypatch.setattr(fluent, "_active_experiment_id", None)


def test_the_experiment_that_mlflow_has_set_is_used(bare, client, tmp_path, active_experiment) -> None:
    import mlflow

    chosen = mlflow.set_experiment(f"set {tmp_path.name}")
    run = bare().start_run()
    run.end()
    own = bare(experiment_name=f"argument {tmp_path.name}").start_run()
    own.end()
    assert all(one.flush().complete for one in (run, own))

    assert client.get_run(run.run_id).info.experiment_id == chosen.experiment_id
    assert client.get_run(own.run_id).info.experiment_id != chosen.experiment_id


def test_the_experiment_id_of_the_environment_comes_after_the_name(bare, client, tmp_path, monkeypatch) -> None:
    experiment_id = client.create_experiment(f"by id {tmp_path.name}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", f"{experiment_id}\n")
    by_id = bare().start_run()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"by name {tmp_path.name}")
    by_name = bare().start_run()
    for run in (by_id, by_name):
        run.end()
        assert run.flush().complete

    assert client.get_run(by_id.run_id).info.experiment_id == experiment_id
    found = client.get_run(by_name.run_id).info.experiment_id
    assert client.get_experiment(found).name == f"by name {tmp_path.name}"


def test_an_experiment_id_that_the_store_does_not_have_is_named_and_nothing_is_lost(
    server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654321")
    run = MLflowTracker(
        server.uri, delivery=Delivery(journal_root=tmp_path / "journal", flush_timeout=0, grace=0)
    ).start_run()
    run.log_metrics({"loss": 1.0})
    run.end()
    wait_for(lambda: run.report().last_error, "delivery says what stops it")

    assert "987654321" in run.report().last_error
    assert "MLFLOW_EXPERIMENT_ID" in run.report().last_error
    assert (run.report().pending, run.report().rejected) == (1, 0)


def test_an_experiment_that_was_set_at_another_store_is_not_used_here(
    server, tmp_path, active_experiment, caplog
) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    try:
        mlflow.set_experiment("elsewhere")
        settings = resolve_settings(server.uri, environ={})
    finally:
        mlflow.set_tracking_uri(None)

    assert (settings.experiment_id, settings.experiment_name) == (None, "Default")
    assert "where its id means nothing" in caplog.text


def test_the_run_name_of_the_environment_names_new_runs_without_one(bare, client, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_NAME", "from the environment")
    runs = [bare().start_run(), bare().start_run("given"), CallbackRun(bare()).begin_training()]
    names = []
    for run in runs:
        run.end()
        assert run.flush().complete
        names.append(client.get_run(run.run_id).info.run_name)

    assert names == ["from the environment", "given", "from the environment"]


def test_a_run_name_that_is_no_text_becomes_one(tracker, client) -> None:
    run = tracker.start_run(7)
    run.end()
    assert run.flush().complete

    assert client.get_run(run.run_id).info.run_name == "7"


# -- values that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{not json", "[1]", '"text"', "12"])
def test_malformed_tags_are_one_warning_and_cost_nothing(bare, client, monkeypatch, caplog, text) -> None:
    monkeypatch.setenv("MLFLOW_TAGS", text)
    runs = [bare().start_run(), bare().start_run()]
    for run in runs:
        run.log_metrics({"loss": 1.0})
        run.end()
        assert run.flush().complete

    assert [client.get_run(run.run_id).data.metrics for run in runs] == [{"loss": 1.0}] * 2
    assert sum("MLFLOW_TAGS" in record.message for record in caplog.records) == 1


def test_a_uri_with_a_line_feed_at_its_end_is_the_same_uri(server) -> None:
    settings = resolve_settings(environ={"MLFLOW_TRACKING_URI": f" {server.uri}\n", "MLFLOW_EXPERIMENT_NAME": "  "})

    assert (settings.tracking_uri, settings.experiment_name) == (server.uri, "Default")


def test_a_timeout_that_is_no_number_does_not_stop_delivery(server, client, tmp_path) -> None:
    code = """
        from tracking_callbacks import MLflowTracker
        with MLflowTracker().start_run() as run:
            run.log_metrics({"loss": 1.0})
        print(run.flush(60).complete)
    """
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "soon"}
    done = run_script(code, cwd=tmp_path, env=env)

    assert done.stdout.strip() == "True", done.stderr


def test_a_limit_of_params_keeps_the_first_and_a_malformed_one_is_ignored(tracker, client, monkeypatch, caplog) -> None:
    params = {f"p{number}": number for number in range(5)}
    found = []
    for limit in ("2", "0", "many"):
        monkeypatch.setenv("MLFLOW_MAX_LOG_PARAMS", limit)
        run = tracker.start_run()
        log_description(run, Description(params, {}))
        run.end()
        assert run.flush().complete
        found.append(sorted(client.get_run(run.run_id).data.params))

    assert found == [["p0", "p1"], [], sorted(params)]
    assert "MLFLOW_MAX_LOG_PARAMS" in caplog.text


# -- off -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["DISABLE_MLFLOW_INTEGRATION", "TRACKING_CALLBACKS_DISABLED"])
def test_the_environment_switches_tracking_off(server, tmp_path, monkeypatch, variable) -> None:
    monkeypatch.setenv(variable, "TRUE")
    root = tmp_path / "journal"
    tracker = MLflowTracker(server.uri, f"off {tmp_path.name}", delivery=Delivery(journal_root=root))
    callback_run = CallbackRun(tracker)
    with tracker.start_run("nothing") as run:
        run.log_metrics({"loss": 1.0})
        run.log_params({"a": 1})
        run.log_text("text", "a.txt")
        run.save_model(lambda folder: pytest.fail(f"saved to {folder}"))
        callback_run.begin_training().log_metrics({"loss": 1.0})
        callback_run.end_training()
    nested = tracker.start_run("child", parent=run)
    nested.end()
    nested.reopen()

    assert run.flush().complete
    assert (run.run_id, run.url, nested.report().pending) == (None, None, 0)
    assert not root.exists()
    assert not delivery_processes(tmp_path)


def test_a_store_that_needs_a_missing_plugin_is_no_error_while_tracking_is_off() -> None:
    settings = resolve_settings(environ={"TRACKING_CALLBACKS_DISABLED": "1", "MLFLOW_TRACKING_URI": "azureml://x"})

    assert settings.disabled


def test_tracking_stays_on_where_the_switch_says_no(bare, monkeypatch) -> None:
    monkeypatch.setenv("TRACKING_CALLBACKS_DISABLED", "false")

    assert not bare().settings.disabled


# -- names as MLflow takes them --------------------------------------------------------------------------------------


def accepts(check, *arguments: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        check(*arguments)
    except (ConfigError, MlflowException):
        return False
    return True


ALIASES = ["latest", "LATEST", "v1", "V22", "v", "v1a", "a" * 255, "a" * 256]
MODELS = ["llama-3.1-8b-lora", "catalog.schema.model", "..", ".", "...", "a..b", "a b", "", " ", "a/b", "a:b"]
NAMES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="a./:.-_ %\"'\\\n", max_size=8),
    st.sampled_from(
        ["llama-3.1-8b-lora", "catalog.schema.model", "..", ".", "...", "a..b", "a b", "", " ", "a/b", "a:b"]
    ),
)


@given(NAMES)
def test_a_registered_model_name_is_taken_exactly_where_mlflow_takes_it(name: str) -> None:
    from mlflow.utils.validation import _validate_model_name

    assert accepts(check_registered_model_name, name, "registered_model_name") == accepts(_validate_model_name, name)


@given(st.one_of(st.text(max_size=6), st.sampled_from(ALIASES)))
def test_an_alias_is_taken_exactly_where_mlflow_takes_it(alias: str) -> None:
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    theirs = accepts(_validate_model_alias_name, alias) and accepts(_validate_model_alias_name_reserved, alias)

    # MLflow's expression also takes a line feed at the end, which no URI can name.
    assert accepts(check_aliases, [alias]) == (theirs and not alias.endswith("\n"))


# -- stores of plugins -----------------------------------------------------------------------------------------------

PLUGIN = {
    "toystore.py": """
        # MLflow imports this while it is being imported itself.
        def store(store_uri=None, artifact_uri=None, **_):
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            return SqlAlchemyStore(store_uri.replace("toy+store", "sqlite"), artifact_uri or "file:///tmp")

        def arn(store_uri=None, artifact_uri=None, **_):
            return store("toy+store:///" + store_uri.removeprefix("arn:toy:"), artifact_uri)
    """,
    "toystore-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toystore\nVersion: 1.0\n",
    "toystore-1.0.dist-info/entry_points.txt": """
        [mlflow.tracking_store]
        toy+store = toystore:store
        arn = toystore:arn
    """,
}


@pytest.mark.parametrize("uri", ["toy+store:///{}/toy.db", "arn:toy:{}/toy.db"], ids=["scheme", "arn"])
def test_a_store_that_a_plugin_brings_is_delivered_to(tmp_path, uri) -> None:
    from mlflow import MlflowClient

    plugin = tmp_path / "plugin"
    for name, text in PLUGIN.items():
        (plugin / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin / name).write_text(textwrap.dedent(text))
    code = """
        from tracking_callbacks import MLflowTracker
        with MLflowTracker().start_run("at the plugin's") as run:
            run.log_metrics({"loss": 1.0})
        print(run.flush(60))
    """
    path = os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH"))))
    env = {"MLFLOW_TRACKING_URI": uri.format(tmp_path), "PYTHONPATH": path}
    done = run_script(code, cwd=tmp_path, env=env, timeout=90)
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/toy.db").search_runs(["0"])

    assert "complete=True" in done.stdout, done.stdout + done.stderr
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("azureml://eastus.api.azureml.ms/mlflow/v1.0/subscriptions/1", "azureml-mlflow"),
        ("arn:aws:sagemaker:us-east-1:1:mlflow-tracking-server/team", "sagemaker-mlflow"),
        ("somebodys://host", "mlflow.tracking_store"),
        ("http+unix://host", "mlflow.tracking_store"),
    ],
)
def test_a_scheme_without_its_plugin_names_the_package(uri: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolve_settings(uri, environ={})
