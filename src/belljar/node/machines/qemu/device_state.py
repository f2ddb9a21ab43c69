"""The state of a stopped machine's devices, which QEMU writes to a pipe.

The guest may have taken over its QEMU: no more than a bound is read, and QEMU waits for its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from belljar.model.errors import MachineError

#: The state of a microvm has about a quarter of a megabyte.
_MAX_BYTES = 64 << 20
_CHUNK_BYTES = 64 * 1024
#: An empty description of the state, which QEMU expects behind it (QEMU_VM_VMDESCRIPTION in its migration/savevm.h).
_DESCRIPTION = b"\x06\x00\x00\x00\x00"


async def read_device_state(save: Callable[[int], Awaitable[None]]) -> bytes:
    """Return the state that QEMU has written to the descriptor of `save` when that returns.

    Raises MachineError, and as `save` does.
    """
    loop, data = asyncio.get_running_loop(), bytearray()
    reading_end, writing_end = os.pipe()
    try:
        os.set_blocking(reading_end, False)
        os.fchmod(writing_end, 0o622)  # QEMU opens it by its path, as another user
        loop.add_reader(reading_end, _read, reading_end, data)
        try:
            await save(writing_end)
        finally:
            loop.remove_reader(reading_end)
        while _read(reading_end, data):
            pass
    finally:
        os.close(reading_end)
        os.close(writing_end)
    if not 0 < len(data) <= _MAX_BYTES:
        raise MachineError(f"the state of the machine's devices has {len(data)} bytes; it cannot be kept")
    return bytes(data) + _DESCRIPTION


def _read(descriptor: int, data: bytearray) -> bool:
    """Read what is there; return whether there was anything, and the bound is not exceeded."""
    with contextlib.suppress(BlockingIOError):
        if len(data) <= _MAX_BYTES:
            chunk = os.read(descriptor, _CHUNK_BYTES)
            data += chunk
            return bool(chunk)
    return False
