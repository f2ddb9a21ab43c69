"""What a person would take instead of belljar, where it is installed: the same script, timed from outside."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence

from belljar.system.executables import find_executable

HELLO = "print('hello')\n"
_SECONDS = 60


def peers() -> dict[str, list[str]]:
    """Name → the command that runs the script once, shut in by whatever it is; a bare process for comparison."""
    # Debian's own, as in the image: what stands first on PATH may be a version manager's script.
    python = [shutil.which("python3", path="/usr/bin:/bin") or "python3", "-c", HELLO]
    found = {"bare python3, no sandbox": python}
    if find_executable("bwrap"):
        jail = [
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
        ]
        found["bubblewrap: namespaces, the host's kernel"] = [*jail, *python]
    if find_executable("runsc"):
        found["gVisor: runsc do"] = ["runsc", "--network=none", "do", *python]
    for engine in ("podman", "docker"):
        if find_executable(engine):
            image = "docker.io/library/python:3-slim"
            found[f"{engine} run"] = [engine, "run", "--rm", "--network=none", "--pull=never", image, *python]
    return found


async def once(command: Sequence[str]) -> float | None:
    """Milliseconds of one run; None when it does not print what it should."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_SECONDS):
            words, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return (time.monotonic() - started) * 1000 if words == b"hello\n" else None
