"""Calls the programs that images are made with: found or named as missing, bounded in time, and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from belljar.model.errors import DiskFull, HostError, ImageBuildError, MissingTool
from belljar.system.executables import find_executable, search_path

#: Where to get a program, by its name.
DEBIAN_PACKAGES = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
    "lz4": "lz4",
    "zstd": "zstd",
    "newuidmap": "uidmap",
    "npm": "npm",
    "skopeo": "skopeo",
    "buildah": "buildah",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
#: How much of a program's complaints is looked at.
_LAST_WORDS = 1 << 20
#: How apt, dpkg and mmdebstrap begin a reason; what follows the first is mostly of its consequences.
_REASON = re.compile(r"(E: |dpkg: error )")
#: The kernel kills a child whose parent has died (PR_SET_PDEATHSIG, prctl(2)).
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


def need(*tools: str) -> None:
    """Raise MissingTool unless every program is on PATH; HostError where Debian's own are not to be had."""
    missing = [tool for tool in tools if find_executable(tool) is None]
    if not missing:
        return
    if "apt-get" in missing or "dpkg-deb" in missing:
        raise HostError(
            "images are built with Debian's tools, and this host is neither Debian nor Ubuntu; "
            "build on one and copy its images folder here (docs/images.md)"
        )
    packages = " ".join(sorted({DEBIAN_PACKAGES.get(tool, tool) for tool in missing}))
    raise MissingTool(f"{', '.join(missing)} not found; install with: apt-get install {packages}")


async def call(
    argv: Sequence[str],
    *,
    log: Path,
    timeout_seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    stdout: Path | None = None,
    own_output: Path | None = None,
    name: str | None = None,
) -> str:
    """Run a program to its end; returns its output, empty when that goes to the file `stdout` or behind `own_output`.

    Its errors are appended to `log`, and told as those of `name`. A cancelled call ends the program with all its
    children; it ends itself when this process is killed. Raises MissingTool, DiskFull, and ImageBuildError with the
    program's reason.
    """
    need(argv[0], "setpriv")
    name = name or argv[0]
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    with contextlib.ExitStack() as files:
        errors = files.enter_context(log.open("ab"))
        source = files.enter_context(stdin.open("rb")) if stdin else asyncio.subprocess.DEVNULL
        target = _target(files, stdout, own_output)
        process = await asyncio.create_subprocess_exec(
            *DIES_WITH_PARENT,
            *argv,
            stdin=source,
            stdout=target,
            stderr=errors,
            cwd=cwd,
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                output, _ = await process.communicate()
        except TimeoutError:
            raise ImageBuildError(f"{name} did not end within {timeout_seconds:g} s; see {log}") from None
        finally:
            await _end(process)
    if process.returncode != 0:
        failure = _failure(name, process.returncode, log, start, output or b"")
        with log.open("ab") as errors:
            errors.write(output or b"")
        raise failure
    return (output or b"").decode(errors="replace")


def _target(files: contextlib.ExitStack, stdout: Path | None, own_output: Path | None) -> BinaryIO | int:
    if own_output is not None:
        return files.enter_context(own_output.open("ab"))
    return files.enter_context(stdout.open("wb")) if stdout else asyncio.subprocess.PIPE


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the program's session, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _failure(tool: str, code: int | None, log: Path, start: int, output: bytes) -> Exception:
    """Its reason: the first that it complained of as such, else its last words."""
    with log.open("rb") as file:
        file.seek(start)
        complaints = file.read()
    words = (complaints.strip() or output)[-_LAST_WORDS:].decode(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in words:
        return DiskFull(f"{tool} ran out of disk; free some space and build again (nothing was left behind)")
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    reason = next((line for line in lines if _REASON.match(line)), last)
    told = reason[:300] if reason == last else f"{reason[:300]} … {last[:100]}"
    return ImageBuildError(f"{tool} failed (exit {code}): {told}; the whole story is in {log}")
