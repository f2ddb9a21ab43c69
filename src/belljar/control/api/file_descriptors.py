"""Raises the limit of file descriptors, and reserves some for the worker beside those of connections."""

from __future__ import annotations

import resource

import structlog

from belljar.model.errors import HostError
from belljar.settings import Settings

log = structlog.get_logger()

#: The highest limit to set: a process that closes all descriptors by number would take long with more.
_MAX_LIMIT = 65_536
_MIN_LIMIT = 128
#: For the database, logs, blobs, and the machines of the worker.
_MAX_RESERVED = 1024
#: The descriptor of a connection, and one for its request.
_PER_CONNECTION = 2


def raise_descriptor_limit() -> int:
    """Raise the soft limit as far as possible, and return it. Raises HostError when it stays too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _MAX_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    if soft == resource.RLIM_INFINITY:
        soft = _MAX_LIMIT
    if soft < _MIN_LIMIT:
        raise HostError(f"the limit of open files is {soft}, and {_MIN_LIMIT} are required; raise it with ulimit -n")
    return soft


def max_connections(settings: Settings) -> int:
    """Return the maximum number of connections: the setting, within what file descriptors allow."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return settings.max_connections
    free = soft - min(soft // 2, _MAX_RESERVED)
    return max(1, min(settings.max_connections, free // _PER_CONNECTION))
