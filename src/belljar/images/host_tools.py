"""Run the programs that build images: check that they are installed, limit their time, reap them."""

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

#: Program → the Debian package that contains it.
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
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
#: The bytes at the end of a program's error output that are searched for the reason.
_ERROR_TAIL_BYTES = 1 << 20
#: The beginning of an error line of apt, dpkg and mmdebstrap; later ones are mostly consequences of the first.
_ERROR_LINE = re.compile(r"(E: |dpkg: error )")
#: The kernel kills a child whose parent has died (PR_SET_PDEATHSIG, prctl(2)).
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


def require_tools(*tools: str) -> None:
    """Raise MissingTool unless every program is on PATH, HostError on a host without Debian's packages."""
    missing = [tool for tool in tools if find_executable(tool) is None]
    if not missing:
        return
    if "apt-get" in missing or "dpkg-deb" in missing:
        raise HostError(
            "building images needs apt and dpkg, and this host is neither Debian nor Ubuntu; "
            "build on one and copy its images folder here (docs/images.md)"
        )
    packages = " ".join(sorted({DEBIAN_PACKAGES.get(tool, tool) for tool in missing}))
    raise MissingTool(f"{', '.join(missing)} not found; install with: apt-get install {packages}")


async def run_tool(
    argv: Sequence[str],
    *,
    log: Path,
    timeout_seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    stdout: Path | None = None,
    output_log: Path | None = None,
    name: str | None = None,
) -> str:
    """Run a program to its end and return its output.

    The output is empty when it is written to the file `stdout` or appended to `output_log`. Errors are appended to
    `log`; messages call the program `name`. Cancelling kills the program with its children, and the kernel kills it
    when this process dies.

    Raises MissingTool, DiskFull, and ImageBuildError with the program's reason.
    """
    require_tools(argv[0], "setpriv")
    name = name or argv[0]
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    with contextlib.ExitStack() as files:
        errors = files.enter_context(log.open("ab"))
        source = files.enter_context(stdin.open("rb")) if stdin else asyncio.subprocess.DEVNULL
        target = _target(files, stdout, output_log)
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
            raise ImageBuildError(f"{name} timed out after {timeout_seconds:g} s; see {log}") from None
        finally:
            await _kill(process)
    if process.returncode != 0:
        failure = _failure(name, process.returncode, log, start, output or b"")
        with log.open("ab") as errors:
            errors.write(output or b"")
        raise failure
    return (output or b"").decode(errors="replace")


def _target(files: contextlib.ExitStack, stdout: Path | None, output_log: Path | None) -> BinaryIO | int:
    if output_log is not None:
        return files.enter_context(output_log.open("ab"))
    return files.enter_context(stdout.open("wb")) if stdout else asyncio.subprocess.PIPE


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the remaining processes of the program's session, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _failure(tool: str, code: int | None, log: Path, start: int, output: bytes) -> Exception:
    """Return the error for a failed program: its first error line, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        errors = file.read()
    text = (errors.strip() or output)[-_ERROR_TAIL_BYTES:].decode(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in text:
        return DiskFull(f"{tool} ran out of disk; free some space and build again (its files were removed)")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    reason = next((line for line in lines if _ERROR_LINE.match(line)), last)
    shown = reason[:300] if reason == last else f"{reason[:300]} … {last[:100]}"
    return ImageBuildError(f"{tool} failed (exit {code}): {shown}; see {log}")
