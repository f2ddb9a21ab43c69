"""Packed scripts as files of this host: the blob folder's own, or copies of an object store's in a bounded cache."""

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

#: How many copies are kept; the ones used longest ago go first.
_MAX_COPIES = 256
#: A copy used this recently may be about to be opened by a machine, and stays.
_IN_USE_SECONDS = 600
#: No packed script is this large, whatever the settings; an object store that says otherwise is not believed.
_MAX_DISK_BYTES = 16 * 1024**3


def disk_blob(script_id: str) -> str:
    """The name of the blob that holds a script's filesystem image."""
    return f"scripts/{script_id}.erofs"


class ScriptDisks:
    """Gives a script's filesystem image as a local file, fetching it when blobs are not a local folder."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def disk(self, script_id: str) -> Path:
        """A file to be read only. Raises NotFound when no such script is stored, DiskFull."""
        if len(script_id) != 64 or not set(script_id) <= set("0123456789abcdef"):
            raise NotFound(f"there is no script {script_id[:80]!r}; list them with GET /v1/scripts")
        own = self._blobs.local_path(disk_blob(script_id))
        if own is not None:
            return own
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
        await in_thread(self._trim)

    def _trim(self) -> None:
        now = time.time()
        aged = sorted((path.stat().st_mtime, path) for path in self._folder.iterdir())
        for used, path in aged[: max(0, len(aged) - _MAX_COPIES)]:
            if now - used > _IN_USE_SECONDS:
                path.unlink(missing_ok=True)
