"""Other ways to run the same script, if they are installed, timed from outside."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence

from belljar.system.executables import find_executable

HELLO = "print('hello')\n"
_SECONDS = 60


def peers() -> dict[str, list[str]]:
    """Return, by name, the command of each sandbox that runs the script once; and a bare process for comparison."""
    # Debian's python3, as in the image: the first on PATH may be a version manager's script.
    python = [shutil.which("python3", path="/usr/bin:/bin") or "python3", "-c", HELLO]
    commands = {"bare python3, no sandbox": python}
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
        commands["bubblewrap: namespaces, the host's kernel"] = [*jail, *python]
    if find_executable("runsc"):
        commands["gVisor: runsc do"] = ["runsc", "--network=none", "do", *python]
    for engine in ("podman", "docker"):
        if find_executable(engine):
            image = "docker.io/library/python:3-slim"
            commands[f"{engine} run"] = [engine, "run", "--rm", "--network=none", "--pull=never", image, *python]
    return commands


async def once(command: Sequence[str]) -> float | None:
    """Run the command once; return the milliseconds, or None when its output is wrong or it takes over a minute."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return (time.monotonic() - started) * 1000 if output == b"hello\n" else None
