"""Files that are mostly holes: disks and memory. Copied and moved so that the holes stay, and cost nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import HostError
from belljar.system.executables import find_executable
from belljar.system.host_errors import host_errors

_CHUNK = 8 << 20
_DIG_SECONDS = 60
_ZEROS = bytes(1 << 20)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy what is written of a file; on file systems that can, the two share it. Raises HostError, DiskFull."""
    with host_errors("copy a machine's disk"), source.open("rb") as read, target.open("xb") as written:
        target.chmod(0o600)
        size = os.fstat(read.fileno()).st_size
        os.ftruncate(written.fileno(), size)
        for start, end in _extents(read.fileno(), size):
            _copy(read.fileno(), written.fileno(), start, end)


def move_sparse(source: Path, target: Path) -> None:
    """Move a file and turn its pages of zeros into holes. Raises HostError, DiskFull."""
    with host_errors("copy a machine's disk"):
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_sparse(source, target)
            source.unlink()
    dig = find_executable("fallocate")
    if dig is not None:  # it only saves room
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([dig, "--dig-holes", target], capture_output=True, check=False, timeout=_DIG_SECONDS)


def overwrite(disk: int, source: Path, *, most: int, before: int) -> int:
    """Write a file over the beginning of a disk, and zeros over what was longer `before`; returns the file's size.

    Raises HostError when it is over `most` bytes, DiskFull.
    """
    with host_errors("copy a machine's disk"), source.open("rb") as read:
        size = os.fstat(read.fileno()).st_size
        if size > most:
            raise HostError(f"the script's file system has {size} bytes, the most is {most}; make the script smaller")
        _copy(read.fileno(), disk, 0, size)
        at = size
        while at < before:
            at += os.pwrite(disk, _ZEROS[: before - at], at)
    return size


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data lies (lseek(2), SEEK_DATA)."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def _copy(source: int, target: int, start: int, end: int) -> None:
    at = start
    while at < end:
        try:
            count = os.copy_file_range(source, target, min(_CHUNK, end - at), at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            count = os.pwrite(target, os.pread(source, min(_CHUNK, end - at), at), at)
        if count == 0:
            raise HostError("a file became shorter while it was copied; is something else writing to it?")
        at += count
