"""Translates failures of MLflow and its transports into what they mean for delivery."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
from collections.abc import Iterator
from typing import Any

from tracking_callbacks._delivery.failures import Blocked, DeliveryError, NotOffered, Refused, Transient
from tracking_callbacks._delivery.stores.reasons import (
    answer_of,
    causes,
    cloud_errors,
    failing_place,
    one_line,
    why_unreachable,
)

__all__ = ["REQUEST_TIMEOUT_VARIABLE", "translate_errors"]

REQUEST_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"

_LONGEST_TIMEOUT_SECONDS = 120
_GIVEN_UP = re.compile(r"too many (\d+) error responses")  # urllib3.exceptions.ResponseError.SPECIFIC_ERROR
_REPORTED = re.compile(
    r"failed with error code \d+ != 200\. Response body: '(.*)'", re.DOTALL
)  # mlflow.utils.rest_utils
_BUSY = (408, 429)
_NO_SUCH_API = (404, 405, 501)
_NOT_FOUND = re.compile(r"not.?found|\b404\b|no (such )?(api|endpoint|route)", re.IGNORECASE)
# After these the request may have been carried out: it failed inside the store, or a proxy lost the store's answer.
# Servers send 429 and 503 without starting on the request.
_UNSURE = (500, 502, 504)
# S3 answers these with 400 and 403; botocore raises the last three without asking S3.
_CREDENTIALS = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn the exceptions of MLflow and its transports into the three cases that delivery distinguishes.

    Args:
        uri: The store as the messages name it, with its credentials masked.
    """
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
        raise _translated(error, uri) from error
    except cloud_errors() as error:
        raise _translated(error, uri) from error
    except json.JSONDecodeError as error:  # a login page, in place of the store's answer
        raise Transient(
            f"{uri} answered something that is not MLflow's: {one_line(error)}", may_have_committed=True
        ) from error
    except (ValueError, OverflowError) as error:  # a text or number that the client or the database driver cannot send
        raise Refused(one_line(error)) from error


def _translated(error: Exception, uri: str) -> DeliveryError:
    origin = _origin(error)
    place = failing_place(error, uri)
    status = _retried_status(error) or _status_of(origin)
    unsent, slow = _unsent(error), _timed_out(error)
    if status in (401, 403) or _lacks_credentials(error):
        what = "the credentials" if place == uri else f"the credentials for {place}"
        return Blocked(f"the store refuses {what}{'' if status is None else f' ({status})'}: {_detail(origin)}")
    if status in _NO_SUCH_API and _is_endpoint_missing(origin):
        return NotOffered(_detail(origin))
    if status is not None and 400 <= status < 500 and status not in _BUSY:
        return Refused(_detail(origin), str(getattr(origin, "error_code", "")))
    if slow:
        _allow_more_time()
        message = f"{place} did not answer in time"
    elif _retried_status(error) is not None:
        message = f"{place} answered {answer_of(status or 500, '')}"
    elif _was_answered(origin) or _REPORTED.search(str(origin)):
        message = f"{place} answered {answer_of(status or 500, _detail(origin))}"
    elif (why := why_unreachable(error)) is not None:
        message = f"cannot reach {place} ({why})" if unsent else f"no answer from {place} ({why})"
    elif any(type(one) is ValueError for one in causes(error)):  # MLflow before 3.17: no number as an experiment's id
        return Refused(_detail(_deepest(error)))
    else:
        message = f"{place}: {_detail(_deepest(error))}"
    return Transient(
        message,
        may_have_committed=not unsent and (status is None or status in _UNSURE),
        retry_now=not (unsent or slow),
    )


def _detail(error: BaseException) -> str:
    """Return what the store itself says in its answer, or else what the error says."""
    response: Any = getattr(error, "response", None)
    text = getattr(response, "text", "")
    if not text and (reported := _REPORTED.search(str(error))):
        text = reported[1]
    with contextlib.suppress(ValueError, AttributeError):
        text = json.loads(text)["message"]
    return one_line(ValueError(text)) if text else one_line(error)


def _deepest(error: BaseException) -> BaseException:
    """Return the database's error in `error`, or `error` itself."""
    return next((one for one in causes(error) if getattr(one, "orig", None) is not None), error)


def _lacks_credentials(error: BaseException) -> bool:
    return any(
        type(one).__name__ in _NO_CREDENTIALS or any(f"({code})" in str(one) for code in _CREDENTIALS)
        for one in causes(error)
    )


def _timed_out(error: BaseException) -> bool:
    """Return whether the request reached the store but the store took too long to answer."""
    import requests
    from urllib3.exceptions import ReadTimeoutError

    # Where retries are counted, even to zero, requests turns urllib3's into a ConnectionError.
    return any(isinstance(one, (requests.ReadTimeout, ReadTimeoutError)) for one in causes(error))


def _allow_more_time() -> None:
    """Double the request timeout, because a server that always needs longer would otherwise never get to answer."""
    seconds = int(os.environ[REQUEST_TIMEOUT_VARIABLE])
    os.environ[REQUEST_TIMEOUT_VARIABLE] = str(max(seconds, min(2 * seconds, _LONGEST_TIMEOUT_SECONDS)))


def _origin(error: BaseException) -> BaseException:
    """Return the failure behind `error`: MLflow's client reports any failed check as an invalid parameter."""
    import requests
    from mlflow.exceptions import MlflowException

    clouds = cloud_errors()
    known = (MlflowException, requests.RequestException, *clouds)
    while not _was_answered(error):
        # boto3 raises S3UploadFailedError while it handles S3's answer, without naming that as the cause.
        cause = error.__cause__ or (error.__context__ if isinstance(error, clouds) else None)
        if cause is None or not isinstance(cause, known):
            break
        error = cause
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


def _unsent(error: BaseException) -> bool:
    """Return whether no connection was established, so that the store cannot have done anything."""
    from urllib3.exceptions import ConnectTimeoutError, ProxyError

    return any(
        isinstance(one, (ConnectTimeoutError, ProxyError, ssl.SSLCertVerificationError)) for one in causes(error)
    )


def _retried_status(error: BaseException) -> int | None:
    """Return the HTTP status at which the transport gave up, which it hides for statuses that it retries."""
    from urllib3.exceptions import ResponseError

    for one in causes(error):
        if isinstance(one, ResponseError) and (found := _GIVEN_UP.search(str(one))):
            return int(found[1])
    return None


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of `error`; None if there was no answer."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return None if status is None else int(status)
    if response is not None:
        return int(response.status_code)
    if _lacks_code(error) and _NOT_FOUND.search(str(getattr(error, "json", ""))):
        return 404  # MLflow's client takes it for 500
    code = getattr(error, "get_http_status_code", None)
    return int(code()) if callable(code) else None
