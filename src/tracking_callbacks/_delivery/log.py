"""The log of a delivery process: on stderr, which its starter has pointed at a file, with secrets masked."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

from tracking_callbacks._values.secrets import mask_text

__all__ = ["log_to_stderr"]


def log_to_stderr() -> None:
    """Send the log to stderr, and with it what libraries print: MLflow prints progress bars and URLs of runs."""
    sys.stdout = sys.stderr = _Masked()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s", stream=sys.stderr
    )


class _Masked(io.TextIOBase):
    """Stderr with secrets masked; a write that fails, on a full disk, is dropped silently."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, mask_text(text).encode(errors="replace"))
        return len(text)
