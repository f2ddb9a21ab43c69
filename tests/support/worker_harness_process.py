"""A worker process, to be killed: `python -m support.worker_harness_process DATA_DIR AGENT NAME LEASE_SECONDS`.

What goes wrong in it is read from the file `faults` in the data folder at each call: lines of PATTERN PROBABILITY.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from belljar.model.errors import DiskFull, HostError
from support.faults import EIO, EMFILE, ENOSPC, Faults, Rule
from support.paths import TESTS
from support.worker_harness import opened_harness

_ERRORS = (lambda: HostError("it refuses"), lambda: DiskFull("no room left"), EMFILE, ENOSPC, EIO)


class FileFaults(Faults):
    """Faults that another process decides on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._random = random.Random()

    def meet(self, name: str, *, after: bool = False) -> Rule | None:
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text().splitlines():
                pattern, chance = line.split()
                if fnmatch.fnmatch(name, pattern) and self._random.random() < float(chance):
                    raise self._random.choice(_ERRORS)()
        return None


async def work(data_dir: Path, agent: Path, name: str, lease_seconds: float) -> None:
    async with opened_harness(data_dir, agent, lease_seconds=lease_seconds) as harness:
        (data_dir / f"{name}.pid").write_text(str(os.getpid()))
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with harness.working(name, faults=FileFaults(data_dir / "faults")):
            await stopped.wait()


@contextlib.asynccontextmanager
async def worker_process(
    data_dir: Path, agent: Path, name: str = "w1", lease_seconds: float = 30
) -> AsyncIterator[asyncio.subprocess.Process]:
    """That worker once it has begun, told to stop with the block unless it was killed before."""
    command = [
        sys.executable,
        "-m",
        "support.worker_harness_process",
        str(data_dir),
        str(agent),
        name,
        str(lease_seconds),
    ]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(TESTS)}
    with (data_dir / f"{name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        while not await asyncio.to_thread(_has_begun, data_dir / f"{name}.pid", process.pid):
            assert process.returncode is None, f"it did not start; see {name}.log in the data folder"
            await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _has_begun(path: Path, pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text() == str(pid)
    return False


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
