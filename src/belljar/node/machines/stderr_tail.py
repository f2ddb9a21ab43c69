"""What a hypervisor's process says on its standard error: its end is kept, and a flood of it is read slowly."""

from __future__ import annotations

import asyncio

_CHUNK = 64 * 1024
#: Read as fast as it comes: more than any start or failure says.
_FREE_BYTES = 1 << 20
#: What a process that the guest may have taken over says beyond that costs belljar no more than this.
_BYTES_PER_SECOND = 1 << 20


async def read_last(stream: asyncio.StreamReader, kept: bytearray, max_bytes: int) -> None:
    """Read to the end of the stream; `kept` always holds the last of it."""
    total = 0
    while chunk := await stream.read(_CHUNK):
        kept += chunk
        del kept[:-max_bytes]
        total += len(chunk)
        if total > _FREE_BYTES:
            await asyncio.sleep(len(chunk) / _BYTES_PER_SECOND)
