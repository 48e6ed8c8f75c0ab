"""Finds the user's own modules that a trained model needs, so that they are saved with it."""

from __future__ import annotations

import logging
import pickletools
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tracking_callbacks.settings import project_root

__all__ = ["code_of", "modules_in_pickle"]

logger = logging.getLogger(__name__)

_INSTALLED = ("site-packages", "dist-packages")
_MOST_BYTES = 20_000_000


def code_of(modules: Iterable[str]) -> list[str]:
    """Return the files and folders below the project root that hold the modules with these names, sorted.

    A module of a package stands for the whole package, because its modules import each other. What is defined in
    ``__main__`` or in a notebook is pickled by value and needs no file; installed packages are requirements.
    """
    root = project_root(Path.cwd()).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"]).resolve()
    found = {place for name in modules for place in _places(name.partition(".")[0])}
    ours = [
        place
        for place in sorted(found)
        if place.is_relative_to(root)
        and place != root
        and not place.is_relative_to(standard)
        and not any(part in _INSTALLED for part in place.parts)
    ]
    return [str(place) for place in ours if not _is_too_large(place)]


def modules_in_pickle(content: bytes) -> set[str]:
    """Return the texts in a pickle that name an imported module; nothing of it is executed.

    Raises:
        ValueError: `content` is not a pickle.
    """
    texts = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    return {name for text in texts for name in text.split(" ")[:1] if name in sys.modules}  # GLOBAL: "module name"


def _places(name: str) -> list[Path]:
    """Return the folder of a package, several of a namespace package, or the file of a module."""
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return []
    folders, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    if folders is not None:
        return [Path(folder).resolve() for folder in folders]
    return [] if file is None else [Path(file).resolve()]


def _is_too_large(place: Path) -> bool:
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and not file.is_symlink())
    if size > _MOST_BYTES:
        logger.warning(
            "the model needs code from %s, which holds %.0f MB and is not saved with it; name the files in code_paths",
            place,
            size / 1e6,
        )
    return size > _MOST_BYTES
