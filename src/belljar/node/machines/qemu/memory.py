"""Guest memory as a file without a name: what a template runs in, and what its clones map copy-on-write.

A snapshot's memory is held in a sealed memfd (memfd_create(2), F_SEAL_WRITE): whoever has a descriptor of it may map it
privately, as a clone's hypervisor does, and nobody can ever change it: neither a hypervisor that a guest has taken
over, nor an accident on the disk. The file on disk is only what it is loaded from, once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import HostError
from belljar.system.host_errors import disk_full_errors, host_errors

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHUNK = 1 << 20
_PAGE = 4096
_ZEROS = bytes(_PAGE)


def new_memory(size_bytes: int) -> int:
    """A descriptor of fresh memory, all zeros, taken from the host as it is written. Raises HostError."""
    with host_errors("take memory for a guest"):
        descriptor = os.memfd_create("belljar-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def seal(descriptor: int) -> None:
    """From now on nobody changes it. Raises HostError while somebody still has it mapped for writing."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise HostError(f"a snapshot's memory cannot be sealed: {error.strerror}") from error


def reopened(descriptor: int, stack: contextlib.AsyncExitStack) -> int:
    """A descriptor of the same file for reading only, with a position of its own, closed with `held`."""
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, again)
    return again


def save(descriptor: int, path: Path) -> None:
    """Write what is in it to a new file, with holes where there are only zeros. Raises DiskFull."""
    with disk_full_errors("save a snapshot"), path.open("xb") as file:
        file.truncate(os.fstat(descriptor).st_size)
        for at, data in _pages(descriptor):
            os.pwrite(file.fileno(), data, at)
        os.fsync(file.fileno())


def load(path: Path) -> int:
    """A sealed descriptor with the file's content. Raises OSError when it cannot be read, HostError."""
    with path.open("rb") as file:
        descriptor = new_memory(os.fstat(file.fileno()).st_size)
        try:
            for at, data in _ranges(file.fileno()):
                os.pwrite(descriptor, data, at)
            seal(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def copy_sparse(source: int, target: int) -> None:
    """Make `target`, an empty file, what `source` is; holes stay holes."""
    os.ftruncate(target, os.fstat(source).st_size)
    for at, data in _ranges(source):
        os.pwrite(target, data, at)


def _ranges(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of what is no hole, lseek(2), in pieces of at most a megabyte."""
    at, size = 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole to the end
                return
            raise
        end = os.lseek(descriptor, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(descriptor, min(_CHUNK, end - at), at)
            if not data:
                return
            yield at, data
            at += len(data)


def _pages(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The same without the pages that are all zeros: a guest's kernel touches many that it leaves so."""
    for at, data in _ranges(descriptor):
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
