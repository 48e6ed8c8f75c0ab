"""Mappings and lists as the text of a JSON or YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracking_callbacks._values.conversion import to_jsonable

__all__ = ["document_text"]


def document_text(obj: Mapping[str, Any] | list[Any], name: str) -> str:
    """Return `obj` as JSON, or as YAML where the file's `name` ends in ``.yaml`` or ``.yml``."""
    content = to_jsonable(obj)
    if name.endswith((".yaml", ".yml")):
        import yaml

        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
