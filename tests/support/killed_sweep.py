"""A sweep that kills its own process (SIGKILL) at a step: python killed_sweep.py FOLDER STEP.

A step is the removal of a file or folder, or the start or end of a write transaction.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from belljar.control.store.database import Database
from support.data_folder import opened

left = int(sys.argv[2])
lock = threading.Lock()


def step() -> None:
    global left
    with lock:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        step()
        return call(*args, **kwargs)

    return called


async def writing(self: Database, work: Callable[[Any], Any]) -> Any:
    step()
    result = await plain_writing(self, work)
    step()
    return result


plain_writing = Database.writing
Database.writing = writing  # type: ignore[method-assign, assignment]
for name in ("unlink", "rmdir"):
    setattr(Path, name, stepping(getattr(Path, name)))


async def main() -> None:
    async with opened(Path(sys.argv[1])) as folder:
        await folder.sweep(keep_stdin_days=0)


asyncio.run(main())
