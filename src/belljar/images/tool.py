"""Calls the programs that images are made with: found or named as missing, bounded in time, and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from belljar.errors import DiskFull, HostError, ImageBuildError, MissingTool
from belljar.executables import find_executable, search_path

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
    "unshare": "util-linux",
}
_LAST_WORDS = 2000


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
) -> str:
    """Run a program to its end; returns its output, empty when that goes to the file `stdout` or behind `own_output`.

    Its errors are appended to `log`. A cancelled call ends the program with all its children. Raises MissingTool,
    DiskFull, and ImageBuildError with the program's last words.
    """
    need(argv[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    with contextlib.ExitStack() as files:
        errors = files.enter_context(log.open("ab"))
        source = files.enter_context(stdin.open("rb")) if stdin else asyncio.subprocess.DEVNULL
        target = _target(files, stdout, own_output)
        process = await asyncio.create_subprocess_exec(
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
            raise ImageBuildError(f"{argv[0]} did not end within {timeout_seconds:g} s; see {log}") from None
        finally:
            await _end(process)
    if process.returncode != 0:
        failure = _failure(argv[0], process.returncode, log, start, output or b"")
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
    """Its last words: of what it complained of, else of what it said."""
    with log.open("rb") as file:
        file.seek(start)
        complaints = file.read()
    words = (complaints.strip() or output)[-_LAST_WORDS:].decode(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in words:
        return DiskFull(f"{tool} ran out of disk; free some space and build again (nothing was left behind)")
    last = next((line for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
    return ImageBuildError(f"{tool} failed (exit {code}): {last[:300]}; the whole story is in {log}")
