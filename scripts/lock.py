"""Write requirements.lock: every package that the extras and dependency groups bring, with its version.

python scripts/lock.py                        # keep the pins that still fit, add new packages
python scripts/lock.py --upgrade peft mlflow  # allow these to change
python scripts/lock.py --upgrade all          # allow everything to change
python scripts/lock.py --compare              # how this environment differs from the lock

The lock holds for CPython 3.11 on Linux. It is a constraints file, so each environment installs its own part of it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
GROUPS = ("build", "dev", "bench", "docs", "release")
PROJECT = "tracking-callbacks"
HEADER = "# Written by `make lock` for CPython 3.11 on Linux; do not edit. Installed by every target of the Makefile.\n"


def read_lock() -> dict[str, str]:
    """Return the locked version of each package, by its normalised name."""
    lines = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.exists() else []
    return dict(line.split("==") for line in lines if "==" in line)


def resolve(kept: dict[str, str]) -> dict[str, str]:
    """Return the packages that pip would install into an empty environment with the pins `kept`."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "-c", str(ROOT / "constraints.txt"), "-c", str(constraints)]
        command += ["-e", f"{ROOT}[all]", *(part for group in GROUPS for part in ("--group", group))]
        subprocess.run(command, check=True, cwd=ROOT)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {normalised(one["metadata"]["name"]): one["metadata"]["version"] for one in installed}
    del found[PROJECT]
    return {name: found[name].partition("+")[0] for name in sorted(found)}  # "+cpu" names one machine's build


def normalised(name: str) -> str:
    """Return the name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return a line for each package whose version differs, or that came or went."""
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def main() -> None:
    """Write the lock, or compare this environment with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--upgrade", nargs="*", default=[], metavar="PACKAGE", help="packages to upgrade; 'all' for every package"
    )
    parser.add_argument("--compare", action="store_true", help="only print how this environment differs")
    chosen = parser.parse_args()
    locked = read_lock()
    if chosen.compare:
        here = {normalised(one.name): one.version.partition("+")[0] for one in metadata.distributions()}
        here.pop(PROJECT, None)
        differing = changes({name: locked[name] for name in locked if name in here}, here)
        print(*(differing or ["nothing"]), sep="\n")
        return
    moving = {normalised(name) for name in chosen.upgrade}
    kept = {} if "all" in moving else {name: version for name, version in locked.items() if name not in moving}
    resolved = resolve(kept)
    LOCK.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in resolved.items()), encoding="utf-8")
    print(*(changes(locked, resolved) or ["requirements.lock has not changed"]), sep="\n")


if __name__ == "__main__":
    main()
