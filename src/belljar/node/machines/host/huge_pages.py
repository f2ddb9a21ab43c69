"""Starts processes that the kernel gives no transparent huge pages.

QEMU asks for huge pages for its cache of translated code and for small tables of the machine. Most of their bytes stay
unused: without them an emulated clone takes 4 MB less, and is not slower. Source: PR_SET_THP_DISABLE in prctl(2); a
child inherits the setting, and keeps it when it executes another program.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_libc = ctypes.CDLL(None)
_depth = 0
_disabled_before = 0


@contextlib.contextmanager
def no_huge_pages() -> Iterator[None]:
    """Have processes that this one starts during the block live without huge pages; blocks may overlap.

    Does nothing on kernels that cannot. Blocks belong to the event loop's thread.
    """
    global _depth, _disabled_before
    if _depth == 0:
        _disabled_before = _prctl(_PR_GET_THP_DISABLE, 0)
        _prctl(_PR_SET_THP_DISABLE, 1)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0 and _disabled_before == 0:
            _prctl(_PR_SET_THP_DISABLE, 0)


def _prctl(option: int, value: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))
