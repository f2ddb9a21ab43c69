"""What a host may lack when a machine starts."""

from __future__ import annotations

import errno
import functools
import os

#: What says that the host has too little of something, and nothing about what was asked for.
HOST_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EBUSY}
)
#: Most that the start of a process takes at once, for a moment.
_START_DESCRIPTORS = 16


@functools.cache
def devnull() -> int:
    """Return a descriptor of /dev/null that is kept: Python's DEVNULL leaks one when a process cannot be started."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def check_descriptors(count: int = _START_DESCRIPTORS) -> None:
    """Raise OSError (EMFILE) now, rather than half-way through the start of a process, which leaks what was opened."""
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.dup(devnull()))
    finally:
        for descriptor in taken:
            os.close(descriptor)
