"""One process at a time changes what is stored of a script: an upload, a deletion, or maintenance.

The lock is that of one byte in one file of the data folder; the script's id gives its offset. So there is no file for
each script, and nothing to remove.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from belljar.data_dir import DataDir
from belljar.model.errors import HostError, host_error
from belljar.system.file_locks import byte_lock

#: Packing the largest script takes seconds; no holder needs longer.
_WAIT_SECONDS = 120.0


@asynccontextmanager
async def script_lock(data_dir: Path, script_id: str, wait_seconds: float = _WAIT_SECONDS) -> AsyncIterator[None]:
    """Hold a script's lock until the block ends. Raises HostError, also when it is not free within `wait_seconds`."""
    path = DataDir(data_dir).script_locks
    offset = int.from_bytes(hashlib.sha256(script_id.encode()).digest()[:7], "big")
    async with AsyncExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            await stack.enter_async_context(byte_lock(path, offset, wait_seconds))
        except TimeoutError:
            raise HostError(f"the script {script_id[:12]} was in use for {wait_seconds:g} s; try again") from None
        except OSError as error:
            raise host_error(error, "open the file of the scripts' locks") from error
        yield
