"""What is left of a template: its memory, device state and scratch disk; files in a folder, loaded to be cloned."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from belljar.node.machines.qemu.memory import load

MEMORY, STATE, SCRATCH = "memory", "state", "scratch"


@dataclass(frozen=True, slots=True)
class Frozen:
    """Sealed descriptors of a snapshot's parts, which nothing that happens to the files changes any more."""

    memory: int
    state: int
    scratch: int | None

    @classmethod
    def load(cls, folder: Path) -> Frozen:
        """Read the parts. Raises OSError when one is not there or cannot be read, HostError."""
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

    def stack(self, stack: contextlib.AsyncExitStack) -> Frozen:
        """The parts for one clone, whatever becomes of the snapshot meanwhile. Raises OSError."""
        parts = []
        for descriptor in (self.memory, self.state, self.scratch):
            if descriptor is not None:
                os.fchmod(descriptor, 0o777)  # where belljar is not root, a clone could have closed it to others
            parts.append(None if descriptor is None else os.dup(descriptor))
            if parts[-1] is not None:
                stack.callback(os.close, parts[-1])
        memory, state, scratch = parts
        assert memory is not None and state is not None
        return Frozen(memory, state, scratch)

    def close(self) -> None:
        for descriptor in (self.memory, self.state, self.scratch):
            if descriptor is not None:
                os.close(descriptor)
