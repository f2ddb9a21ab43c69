"""What the host refuses while a machine starts, as errors that say what an operator can do about it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
from collections.abc import Iterator

from belljar.errors import DiskFull, HostError

#: What says that the host has too little of something, and nothing about what was asked for.
HOST_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EBUSY}
)
_PROCESSES = (
    "this user or group has as many processes as it may: raise the limit (ulimit -u, TasksMax= of the service, "
    "pids.max of its cgroup) or run fewer jobs at once"
)
_MEMORY = "the host has no memory left: run fewer jobs at once, or smaller ones"


#: Most that the start of a process takes at once, for a moment.
_START_DESCRIPTORS = 16


@functools.cache
def devnull() -> int:
    """Return a descriptor of /dev/null that is kept: Python's DEVNULL leaks one when a process cannot be started."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def check_descriptors() -> None:
    """Raise OSError (EMFILE) now, rather than half-way through the start of a process, which leaks what was opened."""
    taken: list[int] = []
    try:
        for _ in range(_START_DESCRIPTORS):
            taken.append(os.dup(devnull()))
    finally:
        for descriptor in taken:
            os.close(descriptor)


def host_error(error: OSError, what: str) -> HostError:
    """Return the error for `what`, such as "cannot start a machine", with what to do where the number tells."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" in {error.filename}" if error.filename else ""
        return DiskFull(f"{what}: no room left{place}; free some space or move the data folder")
    return HostError(f"{what}: {_advice(error)}")


def _advice(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"this process has as many open files as it may ({limit}): raise the limit (ulimit -n, LimitNOFILE= of "
            "the service) or run fewer jobs at once"
        )
    if error.errno == errno.ENFILE:
        return "the host has as many open files as it may: raise it with sysctl fs.file-max, or run fewer jobs at once"
    if error.errno == errno.EAGAIN:
        return _PROCESSES
    if error.errno == errno.ENOMEM:
        return _MEMORY
    return f"{os.strerror(error.errno) if error.errno else error}" + (f": {error.filename}" if error.filename else "")


@contextlib.contextmanager
def host_errors(what: str) -> Iterator[None]:
    """Raise OSErrors of the block as HostError or DiskFull."""
    try:
        yield
    except OSError as error:
        raise host_error(error, what) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise HostError(f"{what}: {_PROCESSES}") from error
