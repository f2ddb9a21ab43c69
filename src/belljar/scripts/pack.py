"""Packing a tree of files into a read-only filesystem image (erofs), the second disk of a machine.

The same tree gives the same bytes: no times, one owner, a fixed filesystem id. Uncompressed, because a page out of the
host's page cache is quicker than one that the guest must decompress.
"""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

from belljar.model.errors import HostError, MissingTool, host_error
from belljar.system.atomic_write import atomic_path
from belljar.system.host_errors import disk_full_errors

#: Whole pages: virtio-blk wants whole sectors of 512 bytes, erofs counts in blocks of 4096.
BLOCK_BYTES = 4096
#: The user and group that jobs run as in a machine.
JOB_UID = 1000
_TIMEOUT_SECONDS = 120
_OPTIONS = (
    "--quiet",
    "-T0",  # every time is 1970-01-01
    "-U00000000-0000-0000-0000-000000000000",
    "-x-1",  # no extended attributes of the host's
    f"--force-uid={JOB_UID}",
    f"--force-gid={JOB_UID}",
)


async def pack_tree(tree: Path, out: Path) -> None:
    """Pack a folder into `out`, which is there whole or not at all; its size is a multiple of 4096 bytes.

    Both paths are absolute. Modes are kept, every file belongs to uid and gid 1000. See mkfs.erofs(1). Raises
    MissingTool, DiskFull, HostError.
    """
    with disk_full_errors("pack the script"), atomic_path(out) as part:
        await _make_filesystem(tree, part)
        _pad(part)


async def _make_filesystem(tree: Path, out: Path) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "mkfs.erofs",
            *_OPTIONS,
            out,
            tree,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise MissingTool("mkfs.erofs is not installed; run: apt-get install erofs-utils") from None
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise HostError(f"mkfs.erofs did not end within {_TIMEOUT_SECONDS} seconds; is the disk overloaded?") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _failed(said.decode("utf-8", "replace"))


def _failed(said: str) -> HostError:
    if "No space left" in said or "Disk quota exceeded" in said:
        return host_error(OSError(errno.ENOSPC, ""), "pack the script")
    reason = next((line for line in said.splitlines() if "<E>" in line), "it gave no reason")
    return HostError(f"mkfs.erofs failed ({reason.strip()[:200]}); belljar needs erofs-utils 1.5 or newer")


def _pad(image: Path) -> None:
    size = image.stat().st_size
    whole = max(BLOCK_BYTES, -(-size // BLOCK_BYTES) * BLOCK_BYTES)
    if whole != size:
        with image.open("r+b") as file:
            file.truncate(whole)
