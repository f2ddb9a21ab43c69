"""Packed scripts as local files: those of the blob folder, or copies from an object store in a bounded cache."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from belljar.control.blobs.store import Blobs
from belljar.model.errors import NotFound
from belljar.scripts.uploads import in_thread, receive
from belljar.system.atomic_write import atomic_path

#: Maximum copies in the cache; the least recently used are evicted.
_MAX_COPIES = 256
#: A copy that was used this recently is not evicted: a machine may be about to open it.
_IN_USE_SECONDS = 600
#: Maximum size of a copy, over that of any packed script.
_MAX_DISK_BYTES = 16 * 1024**3


def disk_blob(script_id: str) -> str:
    """Return the name of the blob with a script's filesystem image."""
    return f"scripts/{script_id}.erofs"


class ScriptDisks:
    """Provides filesystem images of scripts as local files, fetched when blobs are not a local folder."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def path(self, script_id: str) -> Path:
        """Return the path of the image, for reading. Raises NotFound, DiskFull."""
        if len(script_id) != 64 or not set(script_id) <= set("0123456789abcdef"):
            raise NotFound(f"there is no script {script_id[:80]!r}; list them with GET /v1/scripts")
        local = self._blobs.local_path(disk_blob(script_id))
        if local is not None:
            return local
        async with self._fetching.setdefault(script_id, asyncio.Lock()):
            copy = self._folder / f"{script_id}.erofs"
            if not copy.exists():
                await self._fetch(script_id, copy)
            os.utime(copy)
        return copy

    async def _fetch(self, script_id: str, copy: Path) -> None:
        await in_thread(partial(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True))
        with atomic_path(copy) as part:
            await receive(self._blobs.stream(disk_blob(script_id)), part, _MAX_DISK_BYTES)
        await in_thread(self._evict)

    def _evict(self) -> None:
        now = time.time()
        by_age = sorted((path.stat().st_mtime, path) for path in self._folder.iterdir())
        for used, path in by_age[: max(0, len(by_age) - _MAX_COPIES)]:
            if now - used > _IN_USE_SECONDS:
                path.unlink(missing_ok=True)
