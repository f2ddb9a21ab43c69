"""File descriptors that the start of a process needs, checked before the start."""

from __future__ import annotations

import functools
import os

#: The most that the start of one process opens at once.
_START_DESCRIPTORS = 16


@functools.cache
def devnull() -> int:
    """Return a descriptor of /dev/null that stays open: Python's DEVNULL leaks one when a process cannot start."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def check_descriptors(count: int = _START_DESCRIPTORS) -> None:
    """Raise OSError (EMFILE) if fewer than `count` descriptors are free.

    Without this check a process start that fails half-way leaks the descriptors that it opened.
    """
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.dup(devnull()))
    finally:
        for descriptor in opened:
            os.close(descriptor)
