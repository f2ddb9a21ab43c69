"""Pack a tree of files into a read-only filesystem image (erofs), the second disk of a machine.

The same tree gives the same bytes: no times, one owner, a fixed filesystem id. The image is not compressed, because
reading a page from the host's page cache is faster than decompressing it in the guest.
"""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

from belljar.model.errors import HostError, MissingTool, host_error
from belljar.system.atomic_write import atomic_path
from belljar.system.host_errors import disk_full_errors

#: virtio-blk needs whole sectors of 512 bytes, erofs blocks of 4096.
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
    """Pack a folder into the file `out` atomically; its size is a multiple of 4096 bytes.

    Both paths are absolute. Modes are kept, every file belongs to uid and gid 1000. See mkfs.erofs(1).

    Raises MissingTool, DiskFull, HostError.
    """
    with disk_full_errors(f"pack the script in {out.parent}"), atomic_path(out) as part:
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
            _, stderr = await process.communicate()
    except TimeoutError:
        raise HostError(f"mkfs.erofs timed out after {_TIMEOUT_SECONDS} s; check the disk") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _mkfs_error(stderr.decode("utf-8", "replace"), out)


def _mkfs_error(stderr: str, out: Path) -> HostError:
    if "No space left" in stderr or "Disk quota exceeded" in stderr:
        return host_error(OSError(errno.ENOSPC, ""), f"pack the script in {out.parent}")
    reason = next((line for line in stderr.splitlines() if "<E>" in line), "no reason given")
    return HostError(f"mkfs.erofs failed ({reason.strip()[:200]}); belljar needs erofs-utils 1.5 or newer")


def _pad(image: Path) -> None:
    size = image.stat().st_size
    padded = max(BLOCK_BYTES, -(-size // BLOCK_BYTES) * BLOCK_BYTES)
    if padded != size:
        with image.open("r+b") as file:
            file.truncate(padded)
