"""Files that machines use as disks and memory: empty file systems, sparse copies, and script disks.

The files are mostly holes. Copies keep the holes, so that a large empty disk costs no room and no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import DiskFull, HostError
from belljar.node.machines.host.descriptors import check_descriptors, devnull
from belljar.node.machines.host.jail import require_tool
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES
from belljar.system.executables import find_executable
from belljar.system.host_errors import host_errors

_CHUNK = 8 << 20
#: Where the kernel cannot copy between the two files, the bytes pass through this process in pieces of this size.
_READ_CHUNK = 1 << 20
_ZEROS = bytes(1 << 20)
#: Copying less than this is quicker than handing it to a thread.
_SMALL_BYTES = 1 << 20
_DIG_SECONDS = 60
_MKFS_SECONDS = 60
#: No journal, since the disk is mounted once; no blocks reserved for root; tables written at their first use.
_MKFS_OPTIONS = (
    "-q",
    "-F",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard,root_owner=0:0",
)


async def make_filesystem(path: str) -> None:
    """Make an empty ext4 file system in the file at `path`. Raises MissingTool, DiskFull, HostError."""
    tool = require_tool("mkfs.ext4", "e2fsprogs")
    check_descriptors()
    process = await asyncio.create_subprocess_exec(
        tool,
        *_MKFS_OPTIONS,
        path,
        stdin=devnull(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_MKFS_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        raise HostError(f"mkfs.ext4 timed out after {_MKFS_SECONDS} s; check the disk of the data folder") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = output.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        if "No space left" in last[0]:
            raise DiskFull("no room left for a scratch disk; free some space or move the data folder")
        raise HostError(f"a scratch disk could not be made: {last[0]}")


@dataclass(slots=True)
class ScriptDisk:
    """The host's side of a clone's `/dev/vdb`: a descriptor that may write, where the guest may only read."""

    descriptor: int
    _used_bytes: int = 0

    async def write(self, source: Path) -> None:
        """Make the file `source` the disk's contents. Raises DiskFull, HostError when it is over SCRIPT_DISK_BYTES."""
        with host_errors(f"copy {source}"):
            size = source.stat().st_size
        if size <= _SMALL_BYTES:
            self._write(source)
        else:
            await uninterrupted(in_thread(self._write, source))

    def _write(self, source: Path) -> None:
        self._used_bytes = overwrite(
            self.descriptor, source, max_bytes=SCRIPT_DISK_BYTES, previous_bytes=self._used_bytes
        )


def overwrite(disk: int, source: Path, *, max_bytes: int, previous_bytes: int) -> int:
    """Write a file to the start of a disk, and zeros over the rest of `previous_bytes`; return the file's size.

    Raises HostError when the file is over `max_bytes`, DiskFull.
    """
    with host_errors(f"copy {source}"), source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise HostError(
                f"the script's file system has {size} bytes, at most {max_bytes} fit; make the script smaller"
            )
        _copy_range(file.fileno(), disk, 0, size)
        at = size
        while at < previous_bytes:
            at += os.pwrite(disk, _ZEROS[: previous_bytes - at], at)
    return size


def copy_sparse(source: int, target: int) -> None:
    """Copy a descriptor's file, without its holes, to the empty file of another. Raises OSError, HostError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in data_extents(source, size):
        _copy_range(source, target, start, end)


def copy_sparse_file(source: Path, target: Path) -> None:
    """Copy a file without its holes to a new one, shared where the file system can. Raises HostError, DiskFull."""
    with host_errors(f"copy {source} to {target}"), source.open("rb") as read, target.open("xb") as written:
        target.chmod(0o600)
        copy_sparse(read.fileno(), written.fileno())


def move_sparse(source: Path, target: Path) -> None:
    """Move a file and turn its pages of zeros into holes. Raises HostError, DiskFull."""
    with host_errors(f"move {source} to {target}"):
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_sparse_file(source, target)
            source.unlink()
    fallocate = find_executable("fallocate")
    if fallocate is not None:  # without it the file takes more room, nothing else
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([fallocate, "--dig-holes", target], capture_output=True, check=False, timeout=_DIG_SECONDS)


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Return start and end of each part of the file that is no hole (lseek(2), SEEK_DATA). Raises OSError."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole up to the end
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    at = start
    while at < end:
        try:
            count = os.copy_file_range(source, target, min(_CHUNK, end - at), at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            count = os.pwrite(target, os.pread(source, min(_READ_CHUNK, end - at), at), at)
        if count == 0:
            raise HostError("a file became shorter while it was copied; check that nothing else writes to it")
        at += count
