"""Core dumps of belljar and the hypervisors that it starts are switched off: their memory holds secrets and guests."""

from __future__ import annotations

import resource

#: A limit of one byte: no file is written (fs/coredump.c: it would be below the least size), and a core_pattern that is
#: a pipe is not started. With a limit of 0 it would be (core(5): "not enforced for core dumps that are piped").
_LIMIT_BYTES = 1


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process and of those that it starts from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = _LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def are_forbidden() -> bool:
    """Return whether `forbid_core_dumps` was called in this process or one above it."""
    return resource.getrlimit(resource.RLIMIT_CORE) == (_LIMIT_BYTES, _LIMIT_BYTES)
