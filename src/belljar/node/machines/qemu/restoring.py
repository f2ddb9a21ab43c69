"""Loads the memory and the device state of frozen machines: once for all copies that are restored from them.

A sandbox that is resumed is the only machine with its memory, and writes to it in place. Copies map it privately: each
has the memory that was loaded, and what it has written since besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from belljar.node.frozen.protocol import FrozenParts
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.qemu.memory import new_memory, seal
from belljar.node.machines.qemu.snapshot_files import MEMORY, STATE, LoadedSnapshot


@dataclass(slots=True)
class _Shared:
    """What is loaded of one frozen machine, and how many starts use it now."""

    users: int = 0
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    loaded: LoadedSnapshot | None = None


class Restoring:
    """The frozen machines of which some are being started now. Running machines have descriptors of their own."""

    def __init__(self) -> None:
        self._shared: dict[str, _Shared] = {}

    @asynccontextmanager
    async def loaded(self, parts: FrozenParts) -> AsyncIterator[LoadedSnapshot]:
        """Provide memory and state, sealed when they are shared. Raises SnapshotUnusable, HostError, OSError."""
        if not parts.is_shared:
            alone = await uninterrupted(in_thread(_load, parts), LoadedSnapshot.close)
            try:
                yield alone
            finally:
                alone.close()
            return
        shared = self._shared.setdefault(parts.id, _Shared())
        shared.users += 1
        try:
            async with shared.loading:
                if shared.loaded is None:
                    shared.loaded = await uninterrupted(in_thread(_load, parts), LoadedSnapshot.close)
            yield shared.loaded
        finally:
            shared.users -= 1
            if not shared.users:
                self._shared.pop(parts.id)
                if shared.loaded is not None:
                    shared.loaded.close()


def _load(parts: FrozenParts) -> LoadedSnapshot:
    with contextlib.ExitStack() as opened:
        memory, state = (_load_part(parts, name, opened) for name in (MEMORY, STATE))
        opened.pop_all()
    return LoadedSnapshot(memory, state, None)


def _load_part(parts: FrozenParts, name: str, opened: contextlib.ExitStack) -> int:
    descriptor = new_memory(0)
    opened.callback(os.close, descriptor)
    parts.copy(name, descriptor)
    if parts.is_shared or name != MEMORY:
        seal(descriptor)
    return descriptor
