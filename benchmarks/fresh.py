"""The fresh process of a measurement: calls one function and leaves its result in a file; see `bench.Child`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["listen", "say"]


def say(**words: Any) -> None:
    """Send something to the benchmark during the work, which reads it with `bench.Child.said`."""
    said = Path(sys.argv[3]).with_name("said.json")
    unfinished = said.with_suffix(".part")
    unfinished.write_text(json.dumps(words))
    os.replace(unfinished, said)


def listen() -> None:
    """Wait until the benchmark lets this process go on."""
    sys.stdin.read()


if __name__ == "__main__":
    place, settings, result = sys.argv[1:]
    module, name = place.split(":")
    Path(result).write_text(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(settings))))
