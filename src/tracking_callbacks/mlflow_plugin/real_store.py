"""Asks the real store, for a limited time: a program must not wait for minutes because a server is away."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import environment_variables
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from tracking_callbacks._values.secrets import mask_uri
from tracking_callbacks._values.store_uri import JOURNAL_PREFIX, absolute_uri, check_uri
from tracking_callbacks.errors import ConfigError

__all__ = ["ANSWER_SECONDS", "AwayError", "RealStore", "store_of"]

ANSWER_SECONDS = 2.0  # for what the journal could answer as well
_PATIENT_SECONDS = 30.0  # for what only the store can answer, once it is connected
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0  # before a store that was away is asked again for what the journal answers

_limits: ContextVar[tuple[float, float] | None] = ContextVar("tracking_callbacks_limits", default=None)


class AwayError(MlflowException):  # type: ignore[misc]  # MLflow has no types
    """The real store does not answer."""


def store_of(uri: str) -> str:
    """Return the real store's URI, absolute, of one that begins with ``journal+``.

    Raises:
        MlflowException: The URI names no store.
    """
    try:
        if not uri.startswith(JOURNAL_PREFIX):
            raise ConfigError(f"expected a URI that begins with {JOURNAL_PREFIX}, got {mask_uri(uri)!r}", setting="uri")
        return absolute_uri(check_uri(uri, "tracking URI"))
    except ConfigError as error:
        raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error


class RealStore:
    """One of MLflow's own stores, built when it is needed.

    Args:
        uri: Its URI, without the prefix of the plugin.
        build: Asks MLflow's store registry for it.
    """

    def __init__(self, uri: str, build: Callable[[], Any]) -> None:
        self.uri = uri
        self._build = build
        self._away_until = 0.0
        self._pause = _FIRST_PAUSE
        _obey_limits()

    def ask(self, method: str, *args: Any, briefly: bool = False, **kwargs: Any) -> Any:
        """Call a method of the real store.

        Args:
            method: Its name.
            args: Its arguments.
            briefly: The journal can answer, too: do not ask at all while the store is known to be away.
            kwargs: Its further arguments.

        Raises:
            AwayError: The store does not answer.
            MlflowException: The store's own answer.
        """
        return self.limited(lambda: getattr(self._store(), method)(*args, **kwargs), briefly=briefly, name=method)

    def limited(self, call: Callable[..., Any], *args: Any, briefly: bool, name: str = "this") -> Any:
        """Call what asks the real store, for as long as `ask` does."""
        if briefly and time.monotonic() < self._away_until:
            raise self._away(name, "it did not answer a moment ago")
        try:
            with _limited(ANSWER_SECONDS if briefly else _patience()):
                answer = call(*args)
        except RestException:
            self._pause, self._away_until = _FIRST_PAUSE, 0.0
            raise
        except MlflowException as error:
            if not _is_silence(error):
                raise
            self._away_until = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            raise error if isinstance(error, AwayError) else self._away(name, _reason(error)) from error
        self._pause, self._away_until = _FIRST_PAUSE, 0.0
        return answer

    def _store(self) -> Any:
        parts = urlsplit(self.uri)
        if parts.scheme.startswith("sqlite") and not os.path.exists(unquote(parts.path.removeprefix("/"))):
            # Delivery builds it in one step; two processes that build it together break it.
            raise self._away("this call", "delivery has not made it yet")
        if parts.scheme == "file":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow ≥ 3.10 refuses file stores otherwise
        return self._build()

    def _away(self, method: str, reason: str) -> AwayError:
        return AwayError(
            f"{mask_uri(self.uri)} cannot be reached ({reason}), and {method} needs it. What this program logs is kept "
            "in the journal and delivered later.",
            TEMPORARILY_UNAVAILABLE,
        )


def _is_silence(error: MlflowException) -> bool:
    """Return whether an error of MLflow's client says that there was no answer."""
    text = str(error)
    return isinstance(error, AwayError) or "API request to" in text or "OperationalError" in text


def _reason(error: BaseException) -> str:
    text = str(error)
    for sign, reason in (("refused", "connection refused"), ("timed out", "no answer"), ("Max retries", "no answer")):
        if sign in text:
            return reason
    return text[:200]


def _patience() -> float:
    timeout = environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT
    return float(timeout.get()) if timeout.is_set() else _PATIENT_SECONDS


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    token = _limits.set((ANSWER_SECONDS, seconds))
    try:
        yield
    finally:
        _limits.reset(token)


@functools.cache
def _obey_limits() -> None:
    """Make MLflow's requests obey `_limits`, in the thread that sets them. Nothing public limits a single call.

    Undocumented (MLflow 3.17.2): the HTTP client asks these two objects at every request.
    """
    timeout = environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT
    retries = environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES
    usual_timeout, usual_retries = timeout.get, retries.get
    timeout.get = lambda: _limits.get() or usual_timeout()  # type: ignore[method-assign]
    retries.get = lambda: usual_retries() if _limits.get() is None else 0  # type: ignore[method-assign]
