"""Returns the memory of large requests to the system after their end."""

from __future__ import annotations

import ctypes

#: From mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 256 * 1024


def return_large_blocks() -> None:
    """Make malloc map each large block on its own, so that free returns it to the system.

    By default glibc raises its threshold to the largest block that was ever freed. Large blocks then share the heap
    with small ones, which keep it from shrinking. With another C library this changes nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
