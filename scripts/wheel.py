"""Build the wheel and the sdist, hold that they are reproducible, and try the wheel as a user without torch.

python scripts/wheel.py               # leaves dist/
python scripts/wheel.py 3.12 3.13     # try it on these Pythons only

What is tried: scripts/wheel_trial.py in a fresh environment of each Python, tests/typing with mypy and pyright as type
checkers of a user see the package, and what `pip uninstall` leaves.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pythons import ROOT, environment

PYTHONS = ("3.11", "3.12", "3.13")
SWITCH = "tracking_callbacks_switch.pth"
TYPES = "tests/typing/core.py"


def main(versions: list[str]) -> None:
    """Build, check and try; the first thing that is wrong ends the program."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        built = [build(Path(folder, "here"), 0o022, 1_700_000_000), build(Path(folder, "else", "where"), 0o077, None)]
        say("two builds from different folders, umasks and times are equal", digests(built[0]) == digests(built[1]))
        wheel, sdist = sorted(built[0].iterdir(), key=lambda path: path.suffix != ".whl")
        for path, digest in zip((wheel, sdist), digests(built[0]).values(), strict=True):
            print(f"  {digest}  {path.name}, {path.stat().st_size / 1024:.0f} KB")
        run("-m", "twine", "check", "--strict", wheel, sdist)
        names = zipfile.ZipFile(wheel).namelist()
        say("the wheel's root has the switch, the package its types, and nothing else", holds_the_package(names))
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in (wheel, sdist):
            shutil.copy(path, ROOT / "dist")
        for version in versions or PYTHONS:
            try_on(version, Path(folder, version), wheel)
    print(f"{wheel.name} is good; it and the sdist are in dist/")


def build(folder: Path, umask: int, modified: int | None) -> Path:
    """Build from a copy of what git has here; return the folder of the sdist and of the wheel that comes out of it.

    The wheel that is built directly has to be the same.
    """
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    os.umask(umask)
    for name in filter(None, tracked.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        if modified is not None:
            os.utime(target, (modified, modified))
    run("-m", "build", "--no-isolation", cwd=folder)
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", "direct", cwd=folder)
    os.umask(0o022)
    (direct,), (through,) = (folder / "direct").iterdir(), (folder / "dist").glob("*.whl")
    say("the wheel out of the sdist is the one that is built directly", direct.read_bytes() == through.read_bytes())
    return folder / "dist"


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the wheel and of the sdist."""
    paths = sorted(folder.iterdir(), key=lambda path: path.suffix != ".whl")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def holds_the_package(names: list[str]) -> bool:
    """Return whether a wheel of these files has what it must, and no tests, caches or the like."""
    roots = {name.partition("/")[0] for name in names}
    infos = {root for root in roots if root.endswith(".dist-info")}
    return roots == {"tracking_callbacks", SWITCH, *infos} and "tracking_callbacks/py.typed" in names


def try_on(version: str, folder: Path, wheel: Path) -> None:
    """Install the wheel into a fresh environment, use it, let type checkers read it, and uninstall it."""
    python = environment(folder, version, "-c", "requirements.lock", str(wheel))
    (place,) = folder.glob("lib/python*/site-packages")
    say(f"{version}: torch is not there, the switch is", not (place / "torch").exists() and (place / SWITCH).exists())
    work = folder / "work"
    work.mkdir()
    (work / "pyproject.toml").touch()
    shutil.copy(ROOT / "scripts" / "wheel_trial.py", folder)
    run(folder / "wheel_trial.py", python=python, cwd=work)
    shutil.copy(ROOT / TYPES, work)
    strict = ("--strict", "--config-file=", "--python-executable", python, "--python-version", version)
    run("-m", "mypy", *strict, Path(TYPES).name, cwd=work)
    (work / "pyrightconfig.json").write_text((ROOT / "tests/typing/pyrightconfig.json").read_text("utf-8"), "utf-8")
    run("-m", "basedpyright", "--pythonpath", python, "--pythonversion", version, cwd=work)
    run("-m", "pip", "uninstall", "--yes", "--quiet", "tracking-callbacks", python=python)
    left = [path.name for path in place.iterdir() if path.name.startswith("tracking_callbacks")]
    say(f"{version}: pip uninstall leaves nothing", not left)


def run(*command: str | Path, python: Path | str = sys.executable, cwd: Path = ROOT) -> None:
    """Run Python with this command; end the program with its output if it fails."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW_"))}
    # The date of everything in the archives: that of the commit, so that anyone can build the same bytes from it.
    when = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True)
    settings["SOURCE_DATE_EPOCH"] = when.stdout.strip()
    done = subprocess.run(
        [python, *command],
        cwd=cwd,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command))}")
    print(
        f"ok: {' '.join(Path(part).name for part in command[:5])}: {done.stdout.strip().splitlines()[-1:]}", flush=True
    )


def say(what: str, holds: bool) -> None:
    """Print what holds, or end the program with what does not."""
    if not holds:
        sys.exit(f"does not hold: {what}")
    print(f"ok: {what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
