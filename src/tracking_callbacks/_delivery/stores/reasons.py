"""Says in one line, in the user's terms, why a call to a store failed.

MLflow, requests, urllib3, SQLAlchemy and the clouds' clients each wrap the failure below them. The line names where the
call went and the innermost cause; the wrappers are left out.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

from tracking_callbacks._values.secrets import mask_text

__all__ = ["answer_of", "causes", "cloud_errors", "failing_place", "one_line", "why_unreachable"]

_LONGEST = 500
_CLOUD_ERRORS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "boto3.exceptions": ("Boto3Error",),
    "azure.core.exceptions": ("AzureError",),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
# What SQLAlchemy and MLflow add to the database's own words: the driver's class, the statement, a link, a retry hint.
_DRIVER = re.compile(r"^\((?:builtins|[\w.]+)\.\w+\)\s*")
_STATEMENT = re.compile(r"\s*(\[SQL: |\(Background on this error at: ).*", re.DOTALL)
_MARKUP = re.compile(r"<(style|script).*?</\1>|<[^>]+>", re.DOTALL)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and everything that it wraps, from outside to inside."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        context = None if one.__suppress_context__ else one.__context__
        inner = (*one.args, getattr(one, "reason", None), getattr(one, "orig", None), one.__cause__, context)
        waiting += [part for part in inner if isinstance(part, BaseException)]


def cloud_errors() -> tuple[type[Exception], ...]:
    """Return the root exceptions of the clouds' clients that are in use; they share none with MLflow or requests."""
    loaded = [(sys.modules[path], names) for path, names in _CLOUD_ERRORS.items() if path in sys.modules]
    return tuple(getattr(module, name) for module, names in loaded for name in names)


def failing_place(error: BaseException, uri: str) -> str:
    """Return what the call went to: the store at `uri`, or the other server that `error` names."""
    for one in causes(error):
        url = getattr(getattr(one, "request", None), "url", None)
        if isinstance(url, str) and (parts := urlsplit(url)).netloc:
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            return uri if parts.netloc.rpartition("@")[2] == urlsplit(uri).netloc.rpartition("@")[2] else place
    return uri


def why_unreachable(error: BaseException) -> str | None:
    """Return why no answer came from the network; None if `error` has another cause."""
    found = list(causes(error))
    proxy = "proxy: " if any(_is(one, "ProxyError") for one in found) else ""
    for one in reversed(found):
        if text := _network_cause(one):
            return proxy + text
    if any(_is(one, "TimeoutError", "Timeout") for one in found):
        return f"{proxy}timed out"
    if any(_is(one, "ProtocolError") for one in found):
        return f"{proxy}the connection broke"
    if any(_is(one, "HTTPError", "ConnectionError") for one in found):
        return proxy + one_line(found[-1])
    return None


def _is(error: BaseException, *names: str) -> bool:
    """Return whether `error` is an exception of urllib3's or requests' with one of these names.

    They are compared by name because not every process imports requests.
    """
    return any(
        kind.__name__ in names and kind.__module__.split(".")[0] in ("urllib3", "requests")
        for kind in type(error).__mro__
    )


def _network_cause(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "host name not known"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.errno:
        network = isinstance(error, ConnectionError) or error.filename is None
        return os.strerror(error.errno).lower() if network else None
    return None


def answer_of(status: int, detail: str) -> str:
    """Return the words for an HTTP status and what the server wrote with it: ``503 (service unavailable)``."""
    try:
        phrase = f" ({HTTPStatus(status).phrase.lower()})"
    except ValueError:
        phrase = ""
    return f"{status}{phrase}" + (f": {detail}" if detail else "")


def one_line(error: BaseException) -> str:
    """Return what `error` says, on one line, without what libraries add to it, and with secrets masked."""
    inner = getattr(error, "orig", None) or error
    text = _MARKUP.sub(" ", _STATEMENT.sub("", _DRIVER.sub("", str(inner))))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if getattr(error, "orig", None) is not None:
        lines = lines[:1]  # psycopg2 goes on with a question: "Is the server running on that host …?"
    text = " ".join(" ".join(lines).split()) or type(inner).__name__
    text = mask_text(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
