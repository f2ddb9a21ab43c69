"""Errors of the operating system while a machine starts, translated into errors that tell an operator what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from belljar.model.errors import TOO_MANY_PROCESSES, HostError, host_error

#: The host is short of something; the error says nothing about the file or call that met it.
HOST_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EBUSY}
)


@contextlib.contextmanager
def host_errors(action: str) -> Iterator[None]:
    """Raise each OSError of the block as HostError or DiskFull; `action` completes "cannot …"."""
    try:
        yield
    except OSError as error:
        raise host_error(error, action) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise HostError(f"cannot {action}: {TOO_MANY_PROCESSES}") from error
