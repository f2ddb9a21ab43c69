"""The scratch disk of a machine: an empty ext4 file system in a sparse file that has no name any more."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from belljar.model.errors import DiskFull, HostError
from belljar.node.machines.host.faults import check_descriptors, devnull
from belljar.node.machines.host.jail import need

#: No journal, since nobody mounts it twice; nothing reserved for root; tables made when they are first used.
_OPTIONS = (
    "-q",
    "-F",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard,root_owner=0:0",
)


@asynccontextmanager
async def scratch_disk(folder: Path, size_mb: int | None) -> AsyncIterator[int | None]:
    """A descriptor of a fresh disk of that many MiB, readable and writable; None when no disk is wanted.

    The file is unlinked before anything is written to it by a guest, so that it goes with its last descriptor, whatever
    dies. Raises MissingTool, DiskFull, HostError.
    """
    if size_mb is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="scratch-")
    try:
        try:
            os.ftruncate(descriptor, size_mb * 1024 * 1024)
            await make_filesystem(name)
        finally:
            Path(name).unlink()
        yield descriptor
    finally:
        os.close(descriptor)


async def make_filesystem(name: str) -> None:
    """An empty ext4 file system in the file of this name. Raises MissingTool, DiskFull, HostError."""
    tool = need("mkfs.ext4", "e2fsprogs")
    check_descriptors()
    process = await asyncio.create_subprocess_exec(
        tool,
        *_OPTIONS,
        name,
        stdin=devnull(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            words, _ = await process.communicate()
    except TimeoutError:
        raise HostError("mkfs.ext4 did not end within 60 s; is the data folder's disk well?") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = words.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        if "No space left" in last[0]:
            raise DiskFull("no room left for a scratch disk; free some space or move the data folder")
        raise HostError(f"a scratch disk could not be made: {last[0]}")
