"""What stands in two files of the project is the same in both."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tracking_callbacks import __version__

ROOT = Path(__file__).parents[1]


def test_make_matrix_tries_the_oldest_versions_that_we_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ("all", "ray")}
    wanted = [Requirement(text) for texts in (project["dependencies"], *extras.values()) for text in texts]
    floors = {one.name: Version(bound.version) for one in wanted for bound in one.specifier if bound.operator == ">="}
    lines = (ROOT / "constraints-floors.txt").read_text("utf-8").splitlines()
    tried = {name: Version(version) for name, _, version in (line.partition("==") for line in lines) if version}
    del floors["torch"]  # constraints-floors.txt says why

    assert {name: tried.get(name) for name in floors} == floors


def test_the_newest_release_in_the_changelog_is_this_version() -> None:
    released = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)

    assert released[0] == __version__
