"""One process at a time changes what is kept of a script: who uploads it, who deletes it, who cleans up.

The lock is a range of one byte in one file of the data folder, at a place that the script's id gives: no file for each
script, nothing to remove. It belongs to the open file (fcntl(2), F_OFD_SETLK), so that the kernel drops it with its
process and two holders of one process exclude each other too.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from belljar.model.errors import HostError, host_error

#: Packing the largest script takes seconds; nobody holds it longer.
_WAIT_SECONDS = 120.0
_LOOK_SECONDS = 0.01
#: struct flock of 64-bit Linux: type, whence, start, length, pid (0), with the compiler's padding.
_FLOCK = struct.Struct("@hhqqi0q")


@asynccontextmanager
async def script_lock(data_dir: Path, script_id: str, wait_seconds: float = _WAIT_SECONDS) -> AsyncIterator[None]:
    """Hold a script's lock until the block ends. Raises HostError, also when it is not to be had in time."""
    descriptor = _open(data_dir / "run" / "scripts.lock")
    try:
        place = int.from_bytes(hashlib.sha256(script_id.encode()).digest()[:7], "big")
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while not _try(descriptor, wanted):
            if asyncio.get_running_loop().time() > deadline:
                raise HostError(f"the script {script_id[:12]} was in use for {wait_seconds:g} s; try again")
            await asyncio.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error(error, "open the file of the scripts' locks") from error


def _try(descriptor: int, wanted: bytes) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as fcntl(2) has it
        return False
    return True
