"""Which errors of the operating system mean that the host is short of something."""

from __future__ import annotations

import errno

#: The host is short of something; the error says nothing about the file or call that met it.
HOST_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EBUSY}
)
