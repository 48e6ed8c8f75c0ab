"""Uploads through the server's artifact proxy: one stream for a file, or parts straight to the server's cloud store.

Large files go in parts where the server offers that, under the same variables as in MLflow's client:
``MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD``, ``MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE``,
``MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE``.
"""

from __future__ import annotations

import contextlib
import io
import mimetypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from tracking_callbacks._delivery.failures import DeliveryError, Refused
from tracking_callbacks._delivery.stores.connection import Connection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["is_proxied", "upload"]

_PARTS_VARIABLE = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"
_MINIMUM_VARIABLE, _MINIMUM = "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", 500 * 1024**2
_PART_VARIABLE, _PART = "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", 10 * 1024**2


def is_proxied(artifact_uri: str) -> bool:
    """Return whether the server takes the files of `artifact_uri` itself."""
    return artifact_uri.startswith("mlflow-artifacts:") or (
        artifact_uri.startswith(("http://", "https://")) and "/mlflow-artifacts/artifacts" in artifact_uri
    )


def upload(connection: Connection, folder_uri: str, path: Path) -> None:
    """Upload a file into a folder below the server's artifact proxy; a replay replaces it.

    Args:
        connection: The server.
        folder_uri: ``mlflow-artifacts:/…``, or the proxy's own URL.
        path: The file.

    Raises:
        Refused: The file is gone, or the server will never accept it.
        DeliveryError: The server did not accept it this time.
    """
    try:
        size = path.stat().st_size
        if size >= _bytes(_MINIMUM_VARIABLE, _MINIMUM) and _takes_parts(connection):
            _upload_parts(connection, folder_uri, path, size)
        else:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            connection.put_file(f"{folder_uri.rstrip('/')}/{path.name}", path, kind)
    except FileNotFoundError as error:
        raise Refused(f"the file {path.name} is gone") from error


def _takes_parts(connection: Connection) -> bool:
    if text := os.environ.get(_PARTS_VARIABLE):
        return text.lower() in ("true", "1")
    return bool(connection.server_info().get("multipart_uploads_enabled"))


class _Part(msgspec.Struct):
    url: str
    part_number: int
    headers: dict[str, str] = {}


class _Upload(msgspec.Struct):
    upload_id: str | None = None
    credentials: list[_Part] = []


def _upload_parts(connection: Connection, folder_uri: str, path: Path, size: int) -> None:
    length = _bytes(_PART_VARIABLE, _PART)
    wanted = {"path": path.name, "num_parts": -(-size // length)}
    begun = connection.post_artifact("mpu/create", folder_uri, wanted, _Upload)
    named = {"path": path.name, "upload_id": begun.upload_id}
    try:
        parts = []
        with open(path, "rb") as content:
            for number, part in enumerate(begun.credentials):
                first = number * length
                section = io.BufferedReader(_Section(content, first, min(length, size - first)))
                etag = connection.put_part(part.url, part.headers, section, min(length, size - first))
                parts.append({"part_number": part.part_number, "etag": etag, "url": part.url})
        connection.post_artifact("mpu/complete", folder_uri, named | {"parts": parts}, dict[str, object])
    except DeliveryError:
        with contextlib.suppress(DeliveryError):
            connection.post_artifact("mpu/abort", folder_uri, named, dict[str, object])
        raise


class _Section(io.RawIOBase):
    """A section of an open file, so that no part lies in memory as a whole."""

    def __init__(self, content: BinaryIO, start: int, size: int) -> None:
        self._content = content
        self._start = start
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        self._content.seek(self._start + self._place)
        found = self._content.read(min(len(view), self._size - self._place))
        view[: len(found)] = found
        self._place += len(found)
        return len(found)

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place


def _bytes(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else default
