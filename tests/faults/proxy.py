"""A proxy between delivery and a real MLflow server that misbehaves on demand."""

from __future__ import annotations

import http.client
import http.server
import json
import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["CREATIONS", "Fault", "Proxy", "running_proxy"]

# MLflow does not make these requests idempotent, so a lost answer could duplicate each of them.
CREATIONS = ("/runs/create", "/logged-models", "/model-versions/create")

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "te", "trailer", "upgrade", "host", "content-length"}


@dataclass(frozen=True)
class Fault:
    """What happens to requests.

    Attributes:
        kind: ``answer``: the proxy answers with one of `statuses` without asking the server (except for 502, which a
            gateway sends when it loses the server's answer, so the server is asked); ``cut``: the server is asked and
            the connection is closed without an answer; ``hang``: there is no answer until the faults change; ``slow``:
            the server's answer comes `seconds` late; ``late``: the server is asked `seconds` late, when the client may
            have given up.
        share: Share of the requests that the fault affects.
        paths: Ends of the paths that the fault affects; empty means all.
        times: How often it strikes each of `paths`; None means without limit.
    """

    kind: Literal["answer", "cut", "hang", "slow", "late"]
    share: float = 1.0
    paths: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (500, 502, 503, 429)
    seconds: float = 0.0
    times: int | None = None

    def concerns(self, method: str, path: str) -> str | None:
        """Return which of `paths` a request matches: an empty text if all do, None if the fault does not apply."""
        if not self.paths:
            return ""
        return next((end for end in self.paths if method in ("POST", "PUT") and path.endswith(end)), None)


class Proxy:
    """Passes requests on to `upstream` except for the current faults; runs in threads of this process.

    Attributes:
        uri: Where it listens; stays the same through `refuse` and `accept`.
        struck: How often each kind of fault has struck, and each kind on each of the named paths.
        late: How many answers a fault has held back for all of its seconds, and how many requests came late.
        refused: The requests that the server itself answered with an error.
        max_params: How many params a run may have, as at Azure; None means any number.
        absent: APIs that are missing, by a part of their paths, each with the body of its 404.
        passes: The ``Authorization`` headers that pass, the others get a 401; None means that all do.
        shown: The ``Authorization`` headers that requests carried.
        bytes_per_second: How fast bodies are taken; None means at once.
        headers: The headers of all requests, in order.
        prefix: What paths begin with before the server's own.
        retry_after: The header of that name, in the answers of a fault.
        moved: Where requests are redirected to; None means nowhere.
    """

    def __init__(self, upstream: str, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self.struck: Counter[str] = Counter()
        self.late = 0
        self.refused: list[str] = []
        self.max_params: int | None = None
        self.absent: dict[str, bytes] = {}
        self.passes: set[str] | None = None
        self.shown: set[str] = set()
        self.bytes_per_second: int | None = None
        self.headers: list[Message] = []
        self.prefix = ""
        self.retry_after: str | None = None
        self.moved: str | None = None
        self._tls = tls
        self._params: dict[str, set[str]] = {}
        self._faults: tuple[Fault, ...] = ()
        self._changed = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server: _Listener | None = None
        self._port = 0
        self.accept()
        self.uri = f"{'https' if tls else 'http'}://127.0.0.1:{self._port}"

    def fault(self, *faults: Fault) -> None:
        """Apply `faults` to requests from now on; the first that strikes counts. Without faults all requests pass."""
        with self._lock:
            self._faults = faults
            self._changed.set()
            self._changed = threading.Event()

    def refuse(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        self.fault()
        if self._server is not None:
            self._server.stop()
            self._server = None

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        if self._server is None:
            self._server = _Listener(("127.0.0.1", self._port), self)
            if self._tls is not None:
                self._server.socket = self._tls.wrap_socket(
                    self._server.socket, server_side=True, do_handshake_on_connect=False
                )
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def strike(self, method: str, path: str) -> tuple[Fault | None, threading.Event]:
        """Return the fault that strikes a request, and the event that is set when the faults change."""
        with self._lock:
            for fault in self._faults:
                place = fault.concerns(method, path)
                name = f"{fault.kind} {place}"
                if place is None or (fault.times is not None and self.struck[name] >= fault.times):
                    continue
                if self._random.random() < fault.share:
                    self.struck.update({fault.kind, name} if place else {fault.kind})
                    return fault, self._changed
            return None, self._changed

    def choose(self, statuses: tuple[int, ...]) -> int:
        """Return one of `statuses`."""
        with self._lock:
            return self._random.choice(statuses)

    def too_many_params(self, path: str, body: bytes) -> bytes | None:
        """Return Azure's refusal if a request would give a run more than `max_params`."""
        if self.max_params is None or not path.endswith("/runs/log-batch"):
            return None
        request = json.loads(body)
        known = self._params.setdefault(request["run_id"], set())
        size = len(known | {param["key"] for param in request.get("params", ())})
        if size > self.max_params:
            message = "A field of the entity is over the size limit. FieldName=Parameters, Limit={}, Size={}."
            content = {"error_code": "INVALID_PARAMETER_VALUE", "message": message.format(self.max_params, size)}
            return json.dumps(content).encode()
        known |= {param["key"] for param in request.get("params", ())}
        return None


@contextmanager
def running_proxy(upstream: str, seed: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy until the block exits."""
    proxy = Proxy(upstream, seed, tls)
    try:
        yield proxy
    finally:
        proxy.refuse()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(address, _Passage)

    def process_request(self, request, client_address) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        """Ignore the error because this proxy provokes clients to give up."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _Passage(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the test's stderr."""

    def _pass(self) -> None:
        proxy = self.server.proxy
        proxy.headers.append(self.headers)
        body = self._body()
        if proxy.moved is not None:
            self._answer(308, [("Location", proxy.moved + self.path)], b"")
            return
        if self.path.startswith("http://"):  # we are the proxy that the environment names
            self.path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()
        if not self.path.startswith(proxy.prefix):
            self._answer(404, [("Content-Type", "text/html")], b"<h1>not here</h1>")
            return
        self.path = self.path.removeprefix(proxy.prefix)
        for part, content in proxy.absent.items():
            if part in self.path:
                self._answer(404, [("Content-Type", "text/plain")], content)
                return
        if (shown := self.headers.get("Authorization")) is not None:
            proxy.shown.add(shown)
        if proxy.passes is not None and shown not in proxy.passes:
            self._answer(401, *_refusal(401))
            return
        if (refusal := proxy.too_many_params(urlsplit(self.path).path, body)) is not None:
            self._answer(400, [("Content-Type", "application/json")], refusal)
            return
        fault, changed = proxy.strike(self.command, urlsplit(self.path).path)
        if fault is None:
            self._answer(*self._ask(body))
            return
        if fault.kind == "answer":
            status = proxy.choose(fault.statuses)
            if status == 502:
                self._ask(body)
            headers, content = _refusal(status)
            if proxy.retry_after is not None:
                headers = [*headers, ("Retry-After", proxy.retry_after)]
            self._answer(status, headers, content)
            return
        if fault.kind == "hang":
            changed.wait()
        elif fault.kind == "cut":
            self._ask(body)
        elif fault.kind == "late":
            changed.wait(fault.seconds)
            self._ask(body)
            proxy.late += 1
        elif fault.kind == "slow":
            answer = self._ask(body)
            proxy.late += not changed.wait(fault.seconds)
            self._answer(*answer)
            return
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self._read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, size: int) -> bytes:
        if (speed := self.server.proxy.bytes_per_second) is None:
            return self.rfile.read(size)
        parts, pause = [], threading.Event()
        for start in range(0, size, speed // 10):
            parts.append(self.rfile.read(min(speed // 10, size - start)))
            if size > speed // 10:
                pause.wait(0.1)
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = urlsplit(self.server.proxy.upstream)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        headers = {name: text for name, text in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 400:
                self.server.proxy.refused.append(f"{answer.status} {self.command} {self.path} {content[:200]!r}")
            return answer.status, answer.getheaders(), content
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, text in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _refusal(status: int) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers and body that the sender of `status` writes: a gateway, MLflow, or basic auth."""
    if status in (401, 403):
        text = {401: "You are not authenticated.", 403: "Permission denied"}[status]
        return [("Content-Type", "text/html"), ("WWW-Authenticate", 'Basic realm="mlflow"')], text.encode()
    if status == 502:
        return [("Content-Type", "text/html")], b"<html><h1>502 Bad Gateway</h1></html>"
    code = {500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE", 429: "REQUEST_LIMIT_EXCEEDED"}[status]
    content = {"error_code": code, "message": f"injected {status}"}
    return [("Content-Type", "application/json")], json.dumps(content).encode()
