"""The state of a git repository at one moment: commit, branch, remote, uncommitted changes, untracked files.

All ``git`` processes are started at once, so that they see the same state of the working tree. They may take seconds in
a large repository; `GitSnapshot.finish` reads their output later.
"""

from __future__ import annotations

import fnmatch
import os
import re
import selectors
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tracking_callbacks._values.secrets import mask_text, without_credentials

__all__ = ["MAX_PATCH_BYTES", "GitSnapshot", "GitState", "find_repository", "holds_secrets", "is_program"]

MAX_PATCH_BYTES = 1_000_000
_MAX_UNTRACKED = 1000
_MAX_STATUS_BYTES = 4_000_000
_GIT_SECONDS = 10.0
# Files whose purpose is to hold secrets: neither their content nor their changes are recorded.
_SECRET_FILES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.keystore",
        "*.ppk",
        "*.kdbx",
    ),
    *(
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        ".pgpass",
        ".htpasswd",
    ),
    *("credentials", "credentials.*", "secrets", "secrets.*", "secret.*", "*.secret", "*.secrets", ".git-credentials"),
    *("*service-account*.json", "*service_account*.json", "client_secret*.json", "kubeconfig", ".vault-token"),
)
_PROGRAMS = (
    ".py",
    ".pyi",
    ".ipynb",
    ".sh",
    ".js",
    ".ts",
    ".c",
    ".cc",
    ".cpp",
    ".cu",
    ".h",
    ".rs",
    ".go",
    ".java",
    ".jl",
)
# While git starts, the training may fork workers. A worker that inherits the write end of git's pipe keeps it open, and
# we would wait for the end of git's output until the worker ends. A fork therefore waits until git has started.
_starting = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)

_FILE_BEGINS = re.compile(r"^(?=diff --git )", re.MULTILINE)
_NAME = re.compile(r"^diff --git .* \"?b/(.*?)\"?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GitState:
    """The state of a repository.

    Attributes:
        tags: MLflow's tags for commit, branch, remote and dirty flag.
        patch: Changes to tracked files since the commit, for ``git apply``, with secrets masked; empty if there are
            none.
        untracked: Paths that git neither tracks nor ignores, relative to the top of the repository.
    """

    tags: dict[str, str] = field(default_factory=dict)
    patch: str = ""
    untracked: tuple[str, ...] = ()


def find_repository(folder: Path) -> Path | None:
    """Return the top folder of the repository that contains `folder`, or None."""
    return next((top for top in (folder, *folder.parents) if (top / ".git").exists()), None)


def holds_secrets(path: str) -> bool:
    """Return whether files of this name usually hold secrets (``.env``, private keys, credentials)."""
    name = PurePosixPath(path).name.lower()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _SECRET_FILES)


def is_program(path: str) -> bool:
    """Return whether a file of this name is source code, in which only literals can be secrets."""
    return path.lower().endswith(_PROGRAMS)


class GitSnapshot:
    """A snapshot of a repository; creating it starts the git processes.

    Args:
        top: The repository's top folder.

    Raises:
        OSError: git cannot be started.
    """

    def __init__(self, top: Path) -> None:
        self._deadline = time.monotonic() + _GIT_SECONDS
        self._top = top
        excluded = [f":(exclude,glob,icase)**/{pattern}" for pattern in _SECRET_FILES]
        self._status = self._start("status", "--porcelain=v2", "--branch", "--untracked-files=normal", "-z")
        self._remotes = self._start("config", "--get-regexp", r"^remote\..*\.url$")
        self._diff = self._start(
            *("-c", "core.quotePath=false", "diff", "--no-ext-diff", "--no-textconv", "--no-color"),
            *("--src-prefix=a/", "--dst-prefix=b/", "HEAD", "--", ".", *excluded),
        )

    def finish(self) -> GitState:
        """Wait for git until at most 10 s after its start, and return the repository's state."""
        status = self._read(self._status, _MAX_STATUS_BYTES)
        remotes = self._read(self._remotes, _MAX_STATUS_BYTES)
        diff = self._read(self._diff, MAX_PATCH_BYTES)
        if status is None:  # a large repository: record at least its commit
            commit = self._read(self._start("rev-parse", "HEAD", seconds=2.0), _MAX_STATUS_BYTES)
            tags = {"mlflow.source.git.commit": commit.strip()} if commit else {}
            return GitState(tags | _remote_tag(remotes or ""))
        tags, changed, untracked = _parse_status(status)
        skipped = [path for path in changed if holds_secrets(path)]
        return GitState(
            tags | _remote_tag(remotes or ""), _patch(diff, tags, skipped, changed), tuple(untracked[:_MAX_UNTRACKED])
        )

    def abandon(self) -> None:
        """Kill the git processes that are still running."""
        for process in (self._status, self._remotes, self._diff):
            if process.poll() is None:
                process.kill()

    def _start(self, *arguments: str, seconds: float = 0.0) -> subprocess.Popen[bytes]:
        self._deadline = max(self._deadline, time.monotonic() + seconds)
        # GIT_OPTIONAL_LOCKS: "status" would otherwise take the index lock and could make the user's commit fail.
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
        with _starting:
            return subprocess.Popen(
                ["git", "-C", str(self._top), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )

    def _read(self, process: subprocess.Popen[bytes], limit: int) -> str | None:
        """Return the output of `process`, cut to `limit` + 1 bytes if it is longer; None if the process fails."""
        assert process.stdout is not None
        output = bytearray()
        finished = False
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while len(output) <= limit and selector.select(max(0.0, self._deadline - time.monotonic())):
                if not (part := os.read(pipe.fileno(), 1 << 16)):
                    finished = True
                    break
                output += part
        if not finished:
            process.kill()
        succeeded = process.wait() == 0 or len(output) > limit
        return output[: limit + 1].decode(errors="replace") if succeeded else None


def _parse_status(status: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Parse ``git status --porcelain=v2 --branch -z``; return tags, changed paths and untracked paths."""
    tags: dict[str, str] = {}
    changed: list[str] = []
    untracked: list[str] = []
    lines = iter(status.split("\0"))
    for line in lines:
        if line.startswith("# branch.oid ") and not line.endswith("(initial)"):
            tags["mlflow.source.git.commit"] = line.split()[2]
        elif line.startswith("# branch.head ") and not line.endswith("(detached)"):
            tags["mlflow.source.git.branch"] = line.split(maxsplit=2)[2]
        elif line.startswith("? "):
            untracked.append(line[2:])
        elif line[:2] in ("1 ", "2 ", "u "):
            changed.append(line.split(" ", {"1": 8, "2": 9, "u": 10}[line[0]])[-1])
            if line[0] == "2":
                next(lines, None)  # the name before the rename
    tags["mlflow.source.git.dirty"] = str(bool(changed)).lower()
    return tags, changed, untracked


def _remote_tag(remotes: str) -> dict[str, str]:
    """Return the tag with the URL of ``origin``, or of the first remote if none has that name."""
    urls = dict(line.split(" ", 1) for line in remotes.splitlines() if " " in line)
    url = urls.get("remote.origin.url") or next(iter(urls.values()), "")
    return {"mlflow.source.git.repoURL": without_credentials(url)} if url else {}


def _patch(diff: str | None, tags: dict[str, str], skipped: list[str], changed: list[str]) -> str:
    if not changed or "mlflow.source.git.commit" not in tags:
        return ""
    head = [f"Changes since commit {tags['mlflow.source.git.commit']}."]
    head += [f"Not shown, for it may hold secrets: {path}" for path in skipped]
    if diff is None:
        head.append(f"They are missing, because git took longer than {_GIT_SECONDS:.0f} s.")
    elif len(diff.encode()) > MAX_PATCH_BYTES:
        head.append(f"Cut after {MAX_PATCH_BYTES} bytes.")
        diff = diff[:MAX_PATCH_BYTES].rpartition("\n")[0] + "\n"
    files = [part for part in _FILE_BEGINS.split(diff or "") if part]
    return "\n".join(head) + "\n\n" + "".join(mask_text(part, code=_is_program_diff(part)) for part in files)


def _is_program_diff(part: str) -> bool:
    name = _NAME.search(part)
    return name is not None and is_program(name[1])
