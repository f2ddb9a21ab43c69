"""What the operating system refuses, as errors that say what an operator can do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from belljar.model.errors import TOO_MANY_PROCESSES, HostError, host_error, is_disk_full


@contextlib.contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Raise OSErrors of the block as HostError or DiskFull; `doing` completes "cannot …"."""
    try:
        yield
    except OSError as error:
        raise host_error(error, doing) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise HostError(f"cannot {doing}: {TOO_MANY_PROCESSES}") from error


@contextlib.contextmanager
def disk_full_errors(doing: str) -> Iterator[None]:
    """Raise OSErrors of the block that mean a full disk as DiskFull, and no others; `doing` completes "cannot …"."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise host_error(error, doing) from error
