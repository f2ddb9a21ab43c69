"""Reads a hypervisor's standard error: keeps the end of it, and slows down a flood."""

from __future__ import annotations

import asyncio

_CHUNK = 64 * 1024
#: Read at full speed: more than any start or failure prints.
_FREE_BYTES = 1 << 20
#: The speed after that: a process that the guest has taken over must not cost belljar more.
_BYTES_PER_SECOND = 1 << 20


async def read_tail(stream: asyncio.StreamReader, tail: bytearray, max_bytes: int) -> None:
    """Read to the end of the stream; `tail` always holds its last `max_bytes`."""
    total = 0
    while chunk := await stream.read(_CHUNK):
        tail += chunk
        del tail[:-max_bytes]
        total += len(chunk)
        if total > _FREE_BYTES:
            await asyncio.sleep(len(chunk) / _BYTES_PER_SECOND)
