"""Gives the memory of large requests back to the system when they have ended."""

from __future__ import annotations

import ctypes

#: From mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 256 * 1024


def return_large_blocks() -> None:
    """Have each large block mapped for itself, so that freeing it returns it.

    By itself glibc raises its threshold to the largest block that was ever freed, after which large blocks share the
    heap with small ones, which keep it from shrinking. Other C libraries have no such function: nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
