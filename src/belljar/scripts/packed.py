"""Reads the file of a packed script again (pack.py): for people who want to change what they ran."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from belljar.model.errors import HostError, MissingTool

_TIMEOUT_SECONDS = 20


async def read_packed(disk: Path, entrypoint: str, max_bytes: int, work: Path) -> bytes | None:
    """Return the content of a script of one small file; None when it is larger or not a plain file.

    `work` is an empty folder of the caller's, who removes it. Raises MissingTool, HostError.
    """
    out = work / "unpacked"
    command = ("fsck.erofs", f"--extract={out}", "--no-preserve", str(disk))
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise MissingTool("fsck.erofs is not installed; run: apt-get install erofs-utils") from None
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await process.wait()
    except TimeoutError:
        raise HostError(f"fsck.erofs timed out after {_TIMEOUT_SECONDS} s; check the disk") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise HostError(f"fsck.erofs cannot read the packed script {disk.name}; upload the script again")
    return await asyncio.to_thread(_read, out / entrypoint, max_bytes)


def _read(path: Path, max_bytes: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    return None if len(content) > max_bytes else content
