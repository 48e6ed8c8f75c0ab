"""Translates failures of MLflow and its transports into what they mean for delivery."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from tracking_callbacks._delivery.failures import Blocked, DeliveryError, NotOffered, Refused, Transient
from tracking_callbacks._values.secrets import mask_text

__all__ = ["ALREADY_THERE", "REQUEST_TIMEOUT_VARIABLE", "translate_errors"]

ALREADY_THERE = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")
REQUEST_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"

_LONGEST_TIMEOUT_SECONDS = 120
_GIVEN_UP = re.compile(r"too many (\d+) error responses")  # urllib3.exceptions.ResponseError.SPECIFIC_ERROR
_BUSY = (408, 429)
_NO_SUCH_API = (404, 405, 501)
_NOT_FOUND = re.compile(r"not.?found|\b404\b", re.IGNORECASE)
# After these the request may have been carried out: it failed inside the store, or a proxy lost the store's answer.
# Servers send 429 and 503 without starting on the request.
_UNSURE = (500, 502, 504)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the exceptions of MLflow and its transports into the three cases that delivery distinguishes."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except DeliveryError:
        raise
    except NotImplementedError as error:  # a store of a plugin
        raise NotOffered(f"the store does not offer this: {error}") from error
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        message = mask_text(f"{type(error).__name__}: {error}").strip()
        origin = _origin(error)
        status = _retried_status(error) or _status_of(origin)
        if status in (401, 403):
            raise Blocked(f"the store refuses the credentials ({status}): {message}") from error
        if status in _NO_SUCH_API and _is_endpoint_missing(origin):
            raise NotOffered(message) from error
        if status is not None and 400 <= status < 500 and status not in _BUSY:
            raise Refused(message) from error
        unsent, slow = _unsent(error), _timed_out(error)
        if unsent:
            message = f"cannot reach the store: {message}"
        elif slow:
            message = f"the store did not answer in time: {message}"
        if slow:
            _allow_more_time()
        raise Transient(
            message,
            may_have_committed=not unsent and (status is None or status in _UNSURE),
            retry_now=not (unsent or slow),
        ) from error
    except (ValueError, TypeError, OverflowError) as error:  # MLflow's client or database driver cannot even send it
        raise Refused(mask_text(f"{type(error).__name__}: {error}")) from error


def _timed_out(error: BaseException | None) -> bool:
    """Return whether the request reached the store but the store took too long to answer."""
    import requests

    while error is not None:
        if isinstance(error, requests.ReadTimeout):
            return True
        error = error.__cause__ or error.__context__
    return False


def _allow_more_time() -> None:
    """Double the request timeout, because a server that always needs longer would otherwise never get to answer."""
    seconds = int(os.environ[REQUEST_TIMEOUT_VARIABLE])
    os.environ[REQUEST_TIMEOUT_VARIABLE] = str(max(seconds, min(2 * seconds, _LONGEST_TIMEOUT_SECONDS)))


def _origin(error: BaseException) -> BaseException:
    """Return the failure behind `error`: MLflow's client reports any failed check as an invalid parameter."""
    import requests
    from mlflow.exceptions import MlflowException

    while not _was_answered(error) and isinstance(error.__cause__, (MlflowException, requests.RequestException)):
        error = error.__cause__
    return error


def _was_answered(error: BaseException) -> bool:
    """Return whether the error comes from the store itself and not from MLflow's client."""
    from mlflow.exceptions import RestException

    return isinstance(error, RestException) or getattr(error, "response", None) is not None


def _is_endpoint_missing(error: BaseException) -> bool:
    """Return whether the store lacks the API, and not just the run or experiment that the call named."""
    return getattr(error, "error_code", None) in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED") or _lacks_code(error)


def _lacks_code(error: BaseException) -> bool:
    """Return whether an answer in JSON carries none of MLflow's error codes: a gateway has written it."""
    content = getattr(error, "json", None)
    return isinstance(content, dict) and "error_code" not in content


def _unsent(error: BaseException | None) -> bool:
    """Return whether no connection was established, so that the store cannot have done anything."""
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    while error is not None:
        for part in (error, *error.args):
            reason = part.reason if isinstance(part, MaxRetryError) else part
            if isinstance(reason, NewConnectionError):
                return True
        error = error.__cause__ or error.__context__
    return False


def _retried_status(error: BaseException | None) -> int | None:
    """Return the HTTP status at which the transport gave up, which it hides for statuses that it retries."""
    from urllib3.exceptions import MaxRetryError, ResponseError

    while error is not None:
        for part in (error, *error.args):
            reason = part.reason if isinstance(part, MaxRetryError) else part
            if isinstance(reason, ResponseError) and (found := _GIVEN_UP.search(str(reason))):
                return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of `error`; None if there was no answer."""
    response: Any = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    if _lacks_code(error) and _NOT_FOUND.search(str(getattr(error, "json", ""))):
        return 404  # MLflow's client takes it for 500
    code = getattr(error, "get_http_status_code", None)
    return int(code()) if callable(code) else None
