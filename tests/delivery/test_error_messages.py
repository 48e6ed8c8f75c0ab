"""What a user reads when the store fails: where the call went and why it failed, on one short line."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import free_port
from tracking_callbacks._delivery.failures import Blocked, DeliveryError, Refused, Transient
from tracking_callbacks._delivery.stores.client import MlflowStore
from tracking_callbacks._delivery.stores.translation import REQUEST_TIMEOUT_VARIABLE


@contextmanager
def listening(react: Callable[[socket.socket], object]) -> Iterator[int]:
    """Accept connections, let `react` treat each of them, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def serve() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)
                    react(connection)
            except OSError:  # the test is over
                return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def answering(status: int, body: str) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall((head + body).encode())
        connection.close()

    return answer


def closing(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.close()


def failure(uri: str, monkeypatch: pytest.MonkeyPatch) -> DeliveryError:
    """Return what a call to the store at `uri` raises."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the store sets these for its process
    monkeypatch.setenv(REQUEST_TIMEOUT_VARIABLE, "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    with pytest.raises(DeliveryError) as raised:
        MlflowStore(uri).run("0" * 32)
    return raised.value


def test_a_refused_connection_is_named_without_the_libraries_exceptions(monkeypatch) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    error = failure(uri, monkeypatch)

    assert str(error) == f"cannot reach {uri} (connection refused)"
    assert isinstance(error, Transient)
    assert not error.may_have_committed


def test_an_unknown_host_is_named(monkeypatch) -> None:
    uri = "http://no-such-host.invalid:5000"

    assert str(failure(uri, monkeypatch)) == f"cannot reach {uri} (host name not known)"


def test_credentials_in_the_uri_are_masked(monkeypatch) -> None:
    port = free_port()
    message = str(failure(f"http://me:plantedpassword@127.0.0.1:{port}", monkeypatch))

    assert message == f"cannot reach http://***@127.0.0.1:{port} (connection refused)"


@pytest.mark.parametrize(
    ("react", "message"),
    [
        (closing, "no answer from {uri} (the connection was closed without an answer)"),
        (lambda connection: None, "{uri} did not answer in time"),
        (answering(503, "<html><style>h1 {}</style><h1>Oh no</h1></html>"), "{uri} answered 503 (service unavailable)"),
    ],
    ids=["closed", "silent", "unavailable"],
)
def test_a_server_without_a_usable_answer_is_named(react, message, monkeypatch) -> None:
    with listening(react) as port:
        uri = f"http://127.0.0.1:{port}"
        error = failure(uri, monkeypatch)

    assert isinstance(error, Transient)
    assert str(error) == message.format(uri=uri)


def test_refused_credentials_come_with_the_servers_words(monkeypatch) -> None:
    with listening(answering(401, "<html>You are not authenticated.</html>")) as port:
        error = failure(f"http://127.0.0.1:{port}", monkeypatch)

    assert isinstance(error, Blocked)
    assert str(error) == "the store refuses the credentials (401): You are not authenticated."


def test_mlflows_own_message_stays(monkeypatch) -> None:
    with listening(answering(400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}')) as port:
        error = failure(f"http://127.0.0.1:{port}", monkeypatch)

    assert isinstance(error, Refused)
    assert str(error) == "INVALID_PARAMETER_VALUE: bad name"


def test_a_proxy_that_is_away_is_named_as_the_cause(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    error = failure("http://mlflow.example.com:5000", monkeypatch)

    assert str(error) == "cannot reach http://mlflow.example.com:5000 (proxy: connection refused)"


def test_a_database_speaks_for_itself_without_statement_and_link(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("select 1 from x")

    assert str(failure(f"sqlite:///{path}", monkeypatch)) == f"sqlite:///{path}: file is not a database"
