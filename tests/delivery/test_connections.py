"""How the REST store connects: what MLflow's client takes from the environment and from files, it takes too."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow import MlflowClient

from faults.proxy import Fault, Proxy, running_proxy
from processes import free_port
from servers import start_server, stop_server
from tracking_callbacks._delivery.batches import Batch, Point
from tracking_callbacks._delivery.failures import Blocked, NotOffered, Transient
from tracking_callbacks._delivery.stores.choice import store_for
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.stores.rest import RestStore


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with running_proxy(server.uri) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    """A home folder without anybody's credentials; no proxies and bundles of this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def store_at(uri: str) -> RestStore:
    store = store_for(uri, None, MlflowStore.__new__(MlflowStore))
    assert isinstance(store, RestStore)
    return store


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_the_first_of_the_known_sources_gives_the_credentials(proxy: Proxy, home: Path, monkeypatch) -> None:
    def shown(uri: str = proxy.uri) -> str | None:
        store_at(uri).find_experiment("Default")
        return proxy.headers[-1]["Authorization"]

    assert shown() is None
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    assert shown() == "Bearer token"
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = b"
    )
    assert shown() == basic("a:b")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "mé")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p:w")
    assert shown() == basic("mé:p:w")
    assert shown(proxy.uri.replace("//", "//u%40x:p%2Fw@")) == basic("u@x:p/w")
    (home / ".netrc").write_text("machine 127.0.0.1 login net password rc")
    assert shown() == basic("net:rc")
    monkeypatch.setenv("NETRC", str(home / "another"))
    (home / "another").write_text("machine example.com login net password rc")
    assert shown() == basic("mé:p:w")


def test_requests_go_below_the_path_of_the_uri(proxy: Proxy, server, client, tmp_path: Path) -> None:
    proxy.prefix = "/team/mlflow"
    store = store_at(f"{proxy.uri}/team/mlflow/")
    run_id = store.create_run(store.experiment_id("prefix"), start_time=1, tags={}, run_name=None)
    (tmp_path / "file.txt").write_text("content")
    store.log_artifact(run_id, tmp_path / "file.txt", "deep")

    assert [found.path for found in client.list_artifacts(run_id, "deep")] == ["deep/file.txt"]
    with pytest.raises(NotOffered, match=r"answered 404 \(not found\): not here"):
        store_at(proxy.uri).find_experiment("prefix")


def test_a_redirect_is_followed_with_method_and_body(proxy: Proxy, server, monkeypatch) -> None:
    proxy.moved = server.uri
    store = store_at(proxy.uri)
    run_id = store.create_run(store.experiment_id("moved"), start_time=1, tags={"a": "b"}, run_name=None)
    store.log_batch(run_id, Batch(metrics=[Point("m", 1.0, 2, 3)]))

    assert store.run(run_id).metrics == [Point("m", 1.0, 2, 3)]
    monkeypatch.setenv("MLFLOW_ALLOW_HTTP_REDIRECTS", "false")
    with pytest.raises(Transient, match="308"):
        store.run(run_id)


def test_a_workspace_is_named_in_each_request_and_must_be_known(proxy: Proxy, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    with pytest.raises(Blocked, match="has no workspaces, but MLFLOW_WORKSPACE names 'team-a'"):
        store_at(proxy.uri).experiment_id("of a team")

    assert proxy.headers[-1]["X-MLFLOW-WORKSPACE"] == "team-a"


def test_a_run_arrives_in_its_workspace_and_in_no_other(tmp_path: Path, monkeypatch) -> None:
    server = start_server(tmp_path, free_port(), options=["--enable-workspaces"])
    try:
        made = urllib.request.Request(
            f"{server.uri}/api/3.0/mlflow/workspaces",
            data=b'{"name": "team-a"}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(made) as answer:
            assert answer.status in (200, 201)
        monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
        store = store_at(server.uri)
        (tmp_path / "file.txt").write_text("content")
        run_id = store.create_run(store.experiment_id("of a team"), start_time=1, tags={}, run_name=None)
        store.log_artifact(run_id, tmp_path / "file.txt", None)
        client = MlflowClient(server.uri)

        assert client.get_experiment_by_name("of a team") is not None
        assert [found.path for found in client.list_artifacts(run_id)] == ["file.txt"]
        monkeypatch.delenv("MLFLOW_WORKSPACE")
        assert store_at(server.uri).find_experiment("of a team") is None
    finally:
        stop_server(server)


def test_a_proxy_of_the_environment_is_used_unless_the_host_is_excluded(proxy: Proxy, server, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", proxy.uri.replace("//", "//user:pass@"))

    def passed(excluded: str) -> bool:
        monkeypatch.setenv("no_proxy", excluded)
        before = len(proxy.headers)
        assert store_at(server.uri).find_experiment("Default") is not None
        return len(proxy.headers) > before

    assert passed("")
    assert proxy.headers[-1]["Proxy-Authorization"] == basic("user:pass")
    assert passed("example.com, 10.0.0.0/8")
    assert not passed("127.0.0.0/8")
    assert not passed("127.0.0.1")
    assert not passed("*")


def test_a_server_that_asks_for_a_pause_gets_it(proxy: Proxy, monkeypatch) -> None:
    store = store_at(proxy.uri)
    proxy.retry_after = "7"
    proxy.fault(Fault("answer", statuses=(503, 429)))
    began = time.monotonic()
    with pytest.raises(Transient) as raised:
        store.find_experiment("Default")

    assert raised.value.retry_after == 7
    assert proxy.struck["answer"] == 1, "it was asked again before its pause was over"
    assert time.monotonic() - began < 7


def test_a_request_that_fails_is_repeated_at_once(proxy: Proxy) -> None:
    store = store_at(proxy.uri)
    proxy.fault(Fault("answer", share=0.5))

    for _ in range(10):
        assert store.find_experiment("Default") is not None
    assert proxy.struck["answer"]


def test_a_slow_server_gets_more_time_at_each_attempt(proxy: Proxy, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    store = store_at(proxy.uri)
    proxy.fault(Fault("slow", seconds=1.5))
    with pytest.raises(Transient, match="did not answer in time") as raised:
        store.find_experiment("Default")

    assert raised.value.may_have_committed
    assert store.find_experiment("Default") is not None


# -- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_is_checked_as_the_variables_say(server, context, certificate: Path, monkeypatch) -> None:
    with running_proxy(server.uri, tls=context) as proxy:
        with pytest.raises(Transient, match="certificate verify failed: self-signed certificate") as raised:
            store_at(proxy.uri).find_experiment("Default")
        assert not raised.value.may_have_committed
        for variable in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(certificate))
                assert store_at(proxy.uri).find_experiment("Default") is not None
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert store_at(proxy.uri).find_experiment("Default") is not None
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        with pytest.raises(Blocked, match="both set"):
            store_at(proxy.uri).find_experiment("Default")
        monkeypatch.delenv("MLFLOW_TRACKING_INSECURE_TLS")
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/no/such/file.pem")
        with pytest.raises(Blocked, match="MLFLOW_TRACKING_SERVER_CERT_PATH names"):
            store_at(proxy.uri).find_experiment("Default")


def test_a_client_certificate_is_shown(server, context, certificate: Path, monkeypatch) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    with running_proxy(server.uri, tls=context) as proxy:
        with pytest.raises(Transient):
            store_at(proxy.uri).find_experiment("Default")
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(certificate))
        assert store_at(proxy.uri).find_experiment("Default") is not None


# -- the choice


@pytest.mark.parametrize(
    ("uri", "registry_uri", "variable"),
    [
        ("sqlite:///mlflow.db", None, None),
        ("databricks", None, None),
        ("http://127.0.0.1:1", "sqlite:///registry.db", None),
        ("http://127.0.0.1:1", None, "MLFLOW_TRACKING_AUTH"),
        ("http://127.0.0.1:1", None, "MLFLOW_TRACKING_AWS_SIGV4"),
    ],
)
def test_what_only_mlflows_client_can_do_goes_through_it(uri, registry_uri, variable, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # the client's store sets these for its process
    if variable is not None:
        assert isinstance(store_for(uri, registry_uri, MlflowStore.__new__(MlflowStore)), RestStore)
        monkeypatch.setenv(variable, "true")

    assert isinstance(store_for(uri, registry_uri, MlflowStore.__new__(MlflowStore)), MlflowStore)


def test_another_server_as_the_registry_is_reached_over_rest() -> None:
    store = store_for("http://127.0.0.1:1", "https://127.0.0.1:2", MlflowStore.__new__(MlflowStore))

    assert isinstance(store, RestStore)
