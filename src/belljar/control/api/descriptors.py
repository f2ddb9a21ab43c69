"""File descriptors: how many there are, and how they are shared out, so that sockets cannot starve the worker."""

from __future__ import annotations

import resource

import structlog

from belljar.model.errors import HostError
from belljar.settings.server import ServerSettings

log = structlog.get_logger()

#: More than this is never needed, and a process that clears its table by number would take long.
_ENOUGH = 65_536
_LEAST = 128
#: For the database, logs, blobs, and the machines of the worker.
_MAX_RESERVED = 1024
#: A connection's own, and one for what its request opens.
_PER_CONNECTION = 2


def raise_descriptor_limit() -> int:
    """Raise the soft limit as far as this process may; returns it. Raises HostError when it is too low to work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        soft = _ENOUGH
    if soft < _LEAST:
        raise HostError(f"this process may open {soft} files, at least {_LEAST} are needed; raise it with: ulimit -n")
    return soft


def max_connections(settings: ServerSettings) -> int:
    """How many connections the server may hold: what the settings say, within what descriptors allow."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return settings.max_connections
    free = soft - min(soft // 2, _MAX_RESERVED)
    return max(1, min(settings.max_connections, free // _PER_CONNECTION))
