"""The parts of a QEMU snapshot: memory, device state and scratch disk; files in a folder, loaded once to be cloned."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from belljar.node.machines.qemu.memory import load

MEMORY, STATE, SCRATCH = "memory", "state", "scratch"


@dataclass(frozen=True, slots=True)
class LoadedSnapshot:
    """Sealed descriptors of a snapshot's parts; later changes of the files do not reach them."""

    memory: int
    state: int
    scratch: int | None

    @classmethod
    def load(cls, folder: Path) -> LoadedSnapshot:
        """Read the parts into memory. Raises OSError when one is missing or unreadable, HostError."""
        with contextlib.ExitStack() as opened:
            parts = []
            for name in (MEMORY, STATE, SCRATCH):
                path = folder / name
                part = load(path) if name != SCRATCH or path.exists() else None
                if part is not None:
                    opened.callback(os.close, part)
                parts.append(part)
            opened.pop_all()
        memory, state, scratch = parts
        assert memory is not None and state is not None
        return cls(memory, state, scratch)

    def duplicate(self, stack: contextlib.AsyncExitStack) -> LoadedSnapshot:
        """Return descriptors for one clone, closed with `stack`; they outlive the snapshot. Raises OSError."""
        parts = []
        for descriptor in (self.memory, self.state, self.scratch):
            if descriptor is not None:
                os.fchmod(descriptor, 0o777)  # where belljar is not root, another clone may have changed the mode
            parts.append(None if descriptor is None else os.dup(descriptor))
            if parts[-1] is not None:
                stack.callback(os.close, parts[-1])
        memory, state, scratch = parts
        assert memory is not None and state is not None
        return LoadedSnapshot(memory, state, scratch)

    def close(self) -> None:
        """Close the descriptors. Clones keep their own."""
        for descriptor in (self.memory, self.state, self.scratch):
            if descriptor is not None:
                os.close(descriptor)
