"""HTTP to one MLflow server: a pool of connections, made as MLflow's client makes them, and what its answers mean."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError, ReadTimeoutError
from urllib3.exceptions import HTTPError as TransportError

from tracking_callbacks._delivery.backoff import retry_transient
from tracking_callbacks._delivery.failures import Blocked, DeliveryError, NotOffered, Refused, Transient
from tracking_callbacks._delivery.stores.client_settings import (
    authorization,
    certificates,
    cloud_certificates,
    proxy_for,
    request_timeout,
    workspace,
)
from tracking_callbacks._delivery.stores.reasons import answer_of, causes, one_line, why_unreachable
from tracking_callbacks._values.secrets import mask_uri

__all__ = ["Connection"]

A = TypeVar("A")

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts"
_SERVER_INFO = "/api/3.0/mlflow/server-info"
_LONGEST_TIMEOUT_SECONDS = 120.0
_LONGEST_PAUSE_SECONDS = 600.0  # that a server may ask for
_SLOWEST_UPLOAD = 1_000_000  # bytes a second: a server answers only when it has passed the file on to its own store
_REDIRECTS = urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0, raise_on_redirect=False)
_NO_SUCH_API = (404, 405, 501)
_BUSY = (408, 429)
# After these the request may have been carried out: it failed inside the store, or a proxy lost the store's answer.
# Servers send 429 and 503 without starting on the request.
_UNSURE = (408, 500, 502, 504)


class Connection:
    """The connections to one server; threads share them.

    Args:
        uri: The server, with a path prefix where it has one, and with credentials or not.

    Attributes:
        shown_uri: The URI with its credentials masked.
    """

    def __init__(self, uri: str) -> None:
        self.shown_uri = mask_uri(uri)
        self._timeout = request_timeout()
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None
        self._parts: urllib3.PoolManager | None = None
        self._headers: dict[str, str] = {}
        self._info: dict[str, Any] | None = None
        self.renew(uri)

    def renew(self, uri: str) -> None:
        """Use the credentials that `uri` and the environment hold by now."""
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        with self._lock:
            self._uri, self._base = uri, f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
            self._pool = self._parts = None

    # -- calls of the API --------------------------------------------------------------------------------------------

    def get(self, place: str, answer: type[A], **query: str) -> A:
        """Return the answer to a GET of the API."""
        return self.repeat("GET", place, answer, query=query)

    @retry_transient
    def repeat(
        self, method: str, place: str, answer: type[A], body: object = None, query: Mapping[str, str] | None = None
    ) -> A:
        """Make a call that is harmless when repeated, if need be several times, and return the answer."""
        return self.call(method, place, answer, body, query)

    def call(
        self, method: str, place: str, answer: type[A], body: object = None, query: Mapping[str, str] | None = None
    ) -> A:
        """Make a call once and return the answer.

        Args:
            method: The HTTP method.
            place: The API's path, below ``/api/2.0/mlflow/``.
            answer: What the answer is decoded to; fields that it does not name are left out.
            body: Content of the request, sent as JSON. None means no content.
            query: The query of the URL.

        Raises:
            DeliveryError: The server did not carry the call out.
        """
        url = f"{self._base}{_API}/{place}" + (f"?{urlencode(query)}" if query else "")
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if content is None else {"Content-Type": "application/json"}
        return self._decoded(self._send(method, url, content, headers), answer)

    # -- files -------------------------------------------------------------------------------------------------------

    @retry_transient
    def put_file(self, artifact_uri: str, path: Path, content_type: str) -> None:
        """Upload a file through the server's artifact proxy, in one stream.

        Args:
            artifact_uri: Where the file goes: ``mlflow-artifacts:/…``, or the proxy's own URL.
            path: The file.
            content_type: Its media type.
        """
        with open(path, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            headers = {"Content-Type": content_type, "Content-Length": str(size)}
            self._send("PUT", self._artifact_url(artifact_uri, "artifacts"), content, headers, size=size)

    def post_artifact(self, action: str, artifact_uri: str, body: object, answer: type[A]) -> A:
        """Call the artifact proxy's API for uploads in parts: ``mpu/create``, ``mpu/complete`` or ``mpu/abort``."""
        url = self._artifact_url(artifact_uri, action)
        headers = {"Content-Type": "application/json"}
        return self._decoded(self._send("POST", url, msgspec.json.encode(body), headers), answer)

    def put_part(self, url: str, headers: Mapping[str, str], content: BinaryIO, size: int) -> str:
        """Upload one part of a file to a presigned URL, with no credentials of the server's, and return its ETag."""
        with self._translated_errors(urlsplit(url)._replace(query="").geturl()):
            response = self._pool_of_parts(url).request(
                "PUT",
                url,
                body=content,
                headers={**headers, "Content-Length": str(size)},
                timeout=self._timeout_for(size),
                retries=_REDIRECTS,
            )
        if response.status >= 400:
            raise _failed(response, urlsplit(url).netloc)
        return str(response.headers.get("ETag", ""))

    def server_info(self) -> dict[str, Any]:
        """Return what the server says of itself; empty for a server that says nothing, such as one before 3.9."""
        if self._info is None:
            try:
                answer = self._send("GET", f"{self._base}{_SERVER_INFO}", None, {})
            except Refused:
                self._info = {}
            else:
                self._info = self._decoded(answer, dict[str, Any])
        return self._info

    def version(self) -> str:
        """Return the version of MLflow that the server runs; empty if it does not say so."""
        try:
            return self._send("GET", f"{self._base}/version", None, {}).data.decode(errors="replace").strip()[:40]
        except Refused:
            return ""

    def _artifact_url(self, artifact_uri: str, action: str) -> str:
        parts = urlsplit(artifact_uri)
        if parts.scheme != "mlflow-artifacts":  # http://host/prefix/api/2.0/mlflow-artifacts/artifacts/<path>
            base, path = artifact_uri.split("/mlflow-artifacts/artifacts", 1)
            return f"{base}/mlflow-artifacts/{action}{quote(unquote(path))}"
        # An artifact URI may name the server that serves the files, where it is another one.
        base = self._base if not parts.netloc else f"{urlsplit(self._base).scheme}://{parts.netloc}"
        path = artifact_uri.split("://" + parts.netloc if parts.netloc else ":", 1)[1]
        return f"{base}{_ARTIFACTS}/{action}/{quote(path.strip('/'))}"

    # -- inside ------------------------------------------------------------------------------------------------------

    def _send(
        self, method: str, url: str, content: bytes | BinaryIO | None, headers: dict[str, str], *, size: int = 0
    ) -> urllib3.BaseHTTPResponse:
        with self._translated_errors(self.shown_uri):
            pool, ours = self._pooled(url)
            response = pool.request(
                method,
                url,
                body=content,
                headers=ours | headers,
                timeout=self._timeout_for(size),
                retries=_REDIRECTS,
                redirect=_follows_redirects(),
            )
        if response.status >= 300:
            raise _failed(response, self.shown_uri)
        return response

    def _pooled(self, url: str) -> tuple[urllib3.PoolManager, dict[str, str]]:
        with self._lock:
            if self._pool is None:
                self._headers = {"User-Agent": "tracking-callbacks"}
                if text := authorization(self._uri):
                    self._headers["Authorization"] = text
                self._pool = _new_pool(url, certificates(url))
                self._info = None
                if name := workspace():
                    self._headers["X-MLFLOW-WORKSPACE"] = name
            return self._pool, self._headers

    def _pool_of_parts(self, url: str) -> urllib3.PoolManager:
        """Return the connections to a cloud store, which knows neither our certificate nor the server's authority."""
        with self._lock:
            if self._parts is None:
                self._parts = _new_pool(url, cloud_certificates(url))
            return self._parts

    def check_workspace(self) -> None:
        """Check that the server knows workspaces if ``MLFLOW_WORKSPACE`` names one; others ignore it silently.

        Raises:
            Blocked: It does not.
        """
        if (name := workspace()) and not self.server_info().get("workspaces_enabled"):
            raise Blocked(f"{self.shown_uri} has no workspaces, but MLFLOW_WORKSPACE names {name!r}")

    def _timeout_for(self, size: int) -> urllib3.Timeout:
        return urllib3.Timeout(connect=self._timeout, read=self._timeout + size / _SLOWEST_UPLOAD)

    @contextlib.contextmanager
    def _translated_errors(self, place: str) -> Iterator[None]:
        try:
            yield
        except DeliveryError:
            raise
        except (TransportError, OSError) as error:
            slow = any(isinstance(one, ReadTimeoutError) for one in causes(error))
            unsent = any(
                isinstance(one, (ConnectTimeoutError, NewConnectionError, ProxyError, ssl.SSLCertVerificationError))
                for one in causes(error)
            )
            if slow:  # a server that always needs longer would otherwise never get to answer
                self._timeout = min(2 * self._timeout, max(self._timeout, _LONGEST_TIMEOUT_SECONDS))
                message = f"{place} did not answer in time"
            else:
                why = why_unreachable(error) or one_line(error)
                message = f"cannot reach {place} ({why})" if unsent else f"no answer from {place} ({why})"
            raise Transient(message, may_have_committed=not unsent, retry_now=not (unsent or slow)) from error
        except (ValueError, OverflowError) as error:  # what cannot be part of a request
            raise Refused(one_line(error)) from error

    def _decoded(self, response: urllib3.BaseHTTPResponse, answer: type[A]) -> A:
        try:
            return msgspec.json.decode(response.data or b"{}", type=answer, strict=False)
        except msgspec.MsgspecError as error:  # a login page, in place of the server's answer
            raise Transient(
                f"{self.shown_uri} answered something that is not MLflow's: {one_line(error)}", may_have_committed=True
            ) from error


class _Complaint(msgspec.Struct):
    """What MLflow's server answers where it refuses."""

    error_code: str = ""
    message: str = ""


def _failed(response: urllib3.BaseHTTPResponse, place: str) -> DeliveryError:
    """Return what an answer with a status of 300 and above means."""
    status = response.status
    try:
        complaint = msgspec.json.decode(response.data, type=_Complaint)
    except msgspec.MsgspecError:
        complaint = _Complaint()
    code = complaint.error_code
    said = one_line(ValueError(complaint.message or response.data.decode(errors="replace")))
    if said == ValueError.__name__:  # there are no words in it
        said = ""
    detail = f"{code}: {said}" if code else said
    if status in (401, 403):
        return Blocked(f"the store refuses the credentials ({status}): {detail}")
    if status in _NO_SUCH_API and code in ("", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
        return NotOffered(f"{place} answered {answer_of(status, detail)}")
    if 400 <= status < 500 and status not in _BUSY:
        return Refused(detail or answer_of(status, ""), code)
    return Transient(
        f"{place} answered {answer_of(status, detail)}",
        may_have_committed=status in _UNSURE,
        retry_now=True,
        retry_after=_retry_after(response),
    )


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    with contextlib.suppress(ValueError, TransportError):
        return min(_REDIRECTS.get_retry_after(response) or 0.0, _LONGEST_PAUSE_SECONDS)
    return 0.0


def _follows_redirects() -> bool:
    return os.environ.get("MLFLOW_ALLOW_HTTP_REDIRECTS", "true").lower() in ("true", "1")


def _new_pool(url: str, tls: dict[str, Any]) -> urllib3.PoolManager:
    # One connection for each of the two lanes.
    settings: dict[str, Any] = {"num_pools": 4, "maxsize": 2, "block": True} | tls
    proxy = proxy_for(url)
    if proxy is None:
        return urllib3.PoolManager(**settings)
    if proxy.startswith("socks"):
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(proxy, **settings)
    user = urlsplit(proxy)
    if user.username:
        credentials = f"{unquote(user.username)}:{unquote(user.password or '')}"
        settings["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=credentials)
    return urllib3.ProxyManager(proxy, **settings)
