"""Precedence of environment, argument, file and MLflow's default; wrong configuration is named at once."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from tracking_callbacks import ConfigError, Delivery, MLflowTracker, Recording
from tracking_callbacks._callbacks.callback_run import CallbackRun
from tracking_callbacks.settings import resolve_settings

BY_ENVIRONMENT = ("experiment_id", "disabled")  # settings that no argument gives


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mlflow_config.yaml"
        path.write_text(text)
        return path

    return write


def test_the_default_is_mlflows_own_at_the_project_root(tmp_path, monkeypatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    settings = resolve_settings()

    assert settings.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.working_folder == tmp_path
    assert settings.journal_root == tmp_path / ".tracking_callbacks"
    assert settings.experiment_name == "Default"


def test_an_existing_file_store_is_used_and_a_log_message_says_so(tmp_path, caplog) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    settings = resolve_settings()

    assert settings.tracking_uri == (tmp_path / "mlruns").as_uri()
    assert "file store" in caplog.text


def test_environment_takes_precedence_over_argument_and_argument_over_file(config, monkeypatch, caplog) -> None:
    file = config("tracking_uri: http://from-file\ndefault_experiment_name: from-file\ndelivery: {flush_timeout: 5}\n")

    assert resolve_settings(config=file).tracking_uri == "http://from-file"
    assert resolve_settings(config=file).delivery.flush_timeout == 5.0
    assert resolve_settings("http://from-argument", config=file).tracking_uri == "http://from-argument"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@from-environment")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from-environment")
    with caplog.at_level(logging.WARNING):
        settings = resolve_settings("http://from-argument", "from-argument", config=file)
    assert settings.tracking_uri == "http://user:secret@from-environment"
    assert settings.experiment_name == "from-environment"
    assert caplog.text.count("overrides") == 2
    assert "secret" not in caplog.text + repr(settings) + repr(MLflowTracker())


def test_the_journal_root_comes_from_the_environment_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKING_CALLBACKS_JOURNAL", str(tmp_path / "elsewhere"))

    assert resolve_settings(delivery=Delivery(journal_root="argument")).journal_root == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("sqlite:///my.db", "sqlite:///{cwd}/my.db"),
        ("sqlite:////abs/my.db", "sqlite:////abs/my.db"),
        ("./mlruns", "file://{cwd}/mlruns"),
        ("file:./mlruns", "file://{cwd}/mlruns"),
        ("file:///abs/mlruns", "file:///abs/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql+psycopg2://u:p@host/db", "postgresql+psycopg2://u:p@host/db"),
        ("databricks", "databricks"),
    ],
)
def test_relative_paths_are_resolved_at_construction(tmp_path, given, resolved) -> None:
    assert resolve_settings(given).tracking_uri == resolved.format(cwd=tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("htp://host", "a scheme that MLflow knows"),
        ("http://", "a host"),
        ("http://host:port", "well-formed"),
        ("sqlite://", "a file"),
        ("sqlite:///:memory:", "a file"),
        ("http://[::1", "well-formed"),
    ],
)
def test_a_malformed_uri_is_named_without_its_password(uri, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        MLflowTracker(uri)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tracking_url: http://x", "unknown key 'tracking_url'; expected one of: .*tracking_uri"),
        ("tracking_uri: 5", "tracking_uri: expected a text"),
        ("delivery: {flush_timeout: soon}", "delivery.flush_timeout: expected a number of seconds"),
        ("delivery: {offline: 'yes'}", "delivery.offline: expected true or false"),
        ("tags: [a]", "tags: expected a mapping"),
        ("- a\n- b", "expected keys and values, got list"),
        ("a: [", "expected YAML"),
        ("default_experiment_name: a\nexperiment_name: b", "'default_experiment_name' gives .* a second time"),
        ("tracking_uri: htp://x", "tracking_uri: expected a scheme"),
        (
            "tracking_uri: localhost:5000",
            "tracking_uri: expected http:// or https:// before the host, got 'localhost:5000'",
        ),
        ("registry_uri: http://", "registry_uri: expected a host"),
        ("record: all", r"record: expected true, false, or the fields of Recording \(config, config_files, "),
        ("record: {source: 0}", "record.source: expected true or false"),
        ("record: {config_files: train.py}", "record.config_files: expected a list of paths"),
        ("record: {config_files: [absent.py]}", "record.config_files: expected files, there is none at"),
        ("delivery: offline", r"delivery: expected the fields of Delivery \(journal_root, offline, "),
        ("delivery: {flush_timeout: -1}", "delivery.flush_timeout: expected a number of seconds, 0 or more"),
        ("delivery: {journal_root: ' '}", "delivery.journal_root: expected a text or path"),
        ("delivery: {max_checkpoint_bytes: 1.5}", "delivery.max_checkpoint_bytes: expected a number of bytes"),
        ("promote: champion", r"promote: expected the fields of Promotion \(alias, by, .*\), got 'champion'"),
        ("promote: {alias: champion}", "promote.by is missing"),
        ("promote: {on: eval/f1}", r"unknown key 'promote.True' \(bool; YAML reads on, off, yes and no as such\)"),
        ("default_experiment_name: 2024", r"default_experiment_name: expected .*, got 2024 \(int\); put it in quotes"),
        ("promote: {alias: latest, by: eval/f1}", "promote.alias: 'latest' is reserved"),
        ("promote: {alias: a, challenger: 'b c', by: eval/f1}", "promote.challenger: 'b c' is not a model alias"),
        ("promote: {alias: a, challenger: a, by: eval/f1}", "promote.challenger: expected another alias than 'a'"),
        ("promote: {alias: a, by: eval/f1, minimum_gain: -1}", "promote.minimum_gain: expected a number, 0 or more"),
        ("promote: {alias: a, by: eval/turnover}", "promote.greater_is_better: expected True or False"),
        ("alerts: fails", "alerts: expected a list of alerts"),
        ("alerts: [fails]", r"alerts\[0\]: expected the fields of Alert \(when, notify\), got 'fails'"),
        ("alerts: [{when: fails, notify: $A}, {when: fails}]", r"alerts\[1\].notify is missing"),
        ("alerts: [{wenn: fails, notify: $A}]", r"unknown key 'alerts\[0\].wenn'"),
        ("alerts: [{when: soon, notify: $A}]", r"alerts\[0\].when: expected a condition such as"),
        ("alerts: [{when: \"' ' > 1\", notify: $A}]", r"alerts\[0\].when: expected a condition such as"),
        ("alerts: [{when: 5, notify: $A}]", r"alerts\[0\].when: expected a text that is not empty, got 5"),
        ("alerts: [{when: fails, notify: 5}]", r"alerts\[0\].notify: expected '\$NAME'.* got 5"),
        ("alerts: [{when: fails, notify: [$A, slack]}]", r"alerts\[0\].notify: expected '\$NAME'.* got 'slack'"),
    ],
)
def test_a_wrong_config_file_is_named_with_its_key(config, text, expected) -> None:
    with pytest.raises(ConfigError, match=rf"^config file \S*mlflow_config.yaml: {expected}"):
        MLflowTracker(config=config(text))


def test_a_missing_config_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        MLflowTracker(config=tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: MLflowTracker(delivery=Delivery(flush_timeout=-1)), "flush_timeout"),
        (lambda: MLflowTracker(delivery=Delivery(offline=1)), "offline"),
        (lambda: MLflowTracker(tags="x"), "tags"),
        (lambda: MLflowTracker(experiment_name=""), "experiment_name"),
        (lambda: MLflowTracker(record="all"), "record"),
        (lambda: MLflowTracker(record=Recording(source=0)), "source"),
        (lambda: MLflowTracker(delivery={"graze": 1}), "unknown key 'delivery.graze'; expected one of: .*grace"),
        (lambda: MLflowTracker(registry_uri="htp://host"), "argument: registry_uri: expected a scheme"),
        (lambda: MLflowTracker(alerts=[{"when": "soon", "notify": "$A"}]), r"argument: alerts\[0\].when: expected"),
        (lambda: MLflowTracker(record=Recording(config_files=["absent"])), "argument: record.config_files: expected"),
    ],
)
def test_a_wrong_argument_is_named(build, named) -> None:
    with pytest.raises(ConfigError, match=named):
        build()


def test_a_malformed_uri_in_the_environment_is_named_with_its_variable(config, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://host")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: tracking_uri: expected a scheme"):
        MLflowTracker("http://host", config=config("tracking_uri: http://x"))


def test_groups_are_merged_field_by_field(config) -> None:
    file = config("record: {source: false}\ndelivery: {flush_timeout: 5, grace: 7}\n")
    settings = resolve_settings(config=file, record=Recording(sample_rows=True), delivery=Delivery(flush_timeout=9))

    assert (settings.record.source, settings.record.sample_rows, settings.record.pictures) == (False, True, True)
    assert (settings.delivery.flush_timeout, settings.delivery.grace) == (9.0, 7.0)
    assert resolve_settings(config=file, record=True).record.source
    assert not resolve_settings(config=config("record: false"), record=Recording(source=True)).record.environment


def test_the_registry_comes_from_the_environment_first(config, monkeypatch, tmp_path) -> None:
    file = config("registry_uri: http://from-file\n")

    assert resolve_settings().registry_uri is None
    assert resolve_settings(config=file).registry_uri == "http://from-file"
    assert resolve_settings(config=file, registry_uri="sqlite:///r.db").registry_uri == f"sqlite:///{tmp_path}/r.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://user:secret@from-environment")
    settings = resolve_settings(config=file)
    assert settings.registry_uri == "http://user:secret@from-environment"
    assert settings.store.registry_uri == "http://***@from-environment"
    assert "secret" not in repr(settings)


def test_construction_touches_nothing(tmp_path) -> None:
    before = sorted(tmp_path.iterdir())
    MLflowTracker("sqlite:///x.db", "e", delivery=Delivery(journal_root="j"))

    assert sorted(tmp_path.iterdir()) == before


def test_every_setting_reaches_joined_runs_trials_and_trackers_of_a_run(tmp_path, monkeypatch) -> None:
    """Each field is off its default, so that none can be forgotten on the way."""
    import mlflow

    (tmp_path / "conf.yaml").write_text(
        "tags: {team: nlp}\npromote: {alias: champion, by: eval/f1}\nalerts: [{when: fails, notify: $HOOK}]\n"
    )
    record = Recording(
        config=False, config_files=[tmp_path / "conf.yaml"], source=False, environment=False, python_logging=False,
        output=True, pictures=False, reports=False, system_metrics=True, datasets=False, sample_rows=True,
        importance=True, input_example=False, description=False, models=False,
    )  # fmt: skip
    delivery = Delivery(
        journal_root=tmp_path / "elsewhere",
        offline=True,
        flush_timeout=3,
        wait_at_end=2,
        grace=4,
        max_checkpoint_bytes=5,
    )
    tracker = MLflowTracker(
        "sqlite:///mine.db",
        "mine",
        config=tmp_path / "conf.yaml",
        registry_uri="sqlite:///registry.db",
        record=record,
        delivery=delivery,
    )
    default = MLflowTracker().settings
    for group in ("record", "delivery"):
        given, usual = getattr(tracker.settings, group), getattr(default, group)
        assert [name for name in given.__struct_fields__ if getattr(given, name) == getattr(usual, name)] == []
    names = [one.name for one in dataclasses.fields(default) if one.name not in ("record", "delivery", *BY_ENVIRONMENT)]
    same = [name for name in names if getattr(default, name) == getattr(tracker.settings, name)]
    assert same == ["working_folder"]

    run = tracker.start_run()
    trial, search = CallbackRun(tracker).begin_trial("trial")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/active.db")
    try:
        with mlflow.start_run() as active:
            joined = CallbackRun(tracker).begin_training()
    finally:
        mlflow.set_tracking_uri(None)

    assert run.settings == search.settings == trial.settings == MLflowTracker.of(run).settings == tracker.settings
    expected = dataclasses.replace(
        tracker.settings, tracking_uri=f"sqlite:///{tmp_path}/active.db", experiment_id=active.info.experiment_id
    )
    assert joined.settings == expected
    for one in (run, trial, search, joined):
        one.end()
