"""The scratch disk of a machine: an empty ext4 file system in a sparse file without a name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from belljar.node.machines.disks import make_filesystem


@asynccontextmanager
async def scratch_disk(folder: Path, size_mb: int | None) -> AsyncIterator[int | None]:
    """Make a disk of that many MiB and provide a descriptor that reads and writes it; None when `size_mb` is None.

    The file is unlinked before a guest writes to it, so it disappears with its last descriptor, even after a crash.
    Raises MissingTool, DiskFull, HostError.
    """
    if size_mb is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="scratch-")
    try:
        try:
            os.ftruncate(descriptor, size_mb * 1024 * 1024)
            await make_filesystem(name)
        finally:
            Path(name).unlink()
        yield descriptor
    finally:
        os.close(descriptor)
