"""Guest memory in files without names: a snapshot source runs in one, and its clones map it copy-on-write.

A snapshot's memory is held in a sealed memfd (memfd_create(2), F_SEAL_WRITE). A clone's hypervisor can map it
privately, but nothing can change it any more: neither a compromised hypervisor nor an accident on the disk. The file on
the disk is read once, to fill the memfd.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import HostError
from belljar.node.machines.disks import copy_sparse, data_extents
from belljar.system.host_errors import disk_full_errors, host_errors

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHUNK = 1 << 20
_PAGE = 4096
_ZEROS = bytes(_PAGE)


def new_memory(size_bytes: int) -> int:
    """Return a descriptor of new memory, all zeros; the host provides it as it is written. Raises HostError."""
    with host_errors("take memory for a guest"):
        descriptor = os.memfd_create("belljar-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def seal(descriptor: int) -> None:
    """Forbid every later change. Raises HostError while a process has the memory mapped for writing."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise HostError(f"a snapshot's memory cannot be sealed: {error.strerror}") from error


def reopen_read_only(descriptor: int, stack: contextlib.AsyncExitStack) -> int:
    """Return a read-only descriptor of the same file with its own position, closed with `stack`. Raises OSError."""
    read_only = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, read_only)
    return read_only


def save(descriptor: int, path: Path) -> None:
    """Write a descriptor's contents to a new file, with holes for pages of zeros. Raises DiskFull, OSError."""
    with disk_full_errors("save a snapshot"), path.open("xb") as file:
        file.truncate(os.fstat(descriptor).st_size)
        for at, data in _nonzero_pages(descriptor):
            os.pwrite(file.fileno(), data, at)
        os.fsync(file.fileno())


def load(path: Path) -> int:
    """Return a sealed descriptor with the file's contents. Raises OSError when it cannot be read, HostError."""
    with path.open("rb") as file:
        descriptor = new_memory(os.fstat(file.fileno()).st_size)
        try:
            copy_sparse(file.fileno(), descriptor)
            seal(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _nonzero_pages(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Return offset and bytes of each run of nonzero pages: a guest's kernel touches many pages that stay zero."""
    for at, data in _written(descriptor):
        start = None
        for offset in range(0, len(data), _PAGE):
            if data[offset : offset + _PAGE] == _ZEROS[: len(data) - offset]:
                if start is not None:
                    yield at + start, data[start:offset]
                start = None
            elif start is None:
                start = offset
        if start is not None:
            yield at + start, data[start:]


def _written(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Return offset and bytes of the parts that are no holes, in pieces of at most a megabyte."""
    for start, end in data_extents(descriptor, os.fstat(descriptor).st_size):
        at = start
        while at < end and (data := os.pread(descriptor, min(_CHUNK, end - at), at)):
            yield at, data
            at += len(data)
