"""A server that is killed and started again at one address, and what it leaves on this host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.paths import TESTS
from support.running import descendants, files_of_run


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class KilledServer:
    """`belljar serve` over one data folder."""

    data_dir: Path
    prefix: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [*self.prefix, sys.executable, "-m", "belljar", "serve", "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), **self.environment}
        with (self.data_dir / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, "--data-dir", str(self.data_dir), env=environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=self.url) as http:
            while True:
                assert self.process.returncode is None, (self.data_dir / "server.log").read_text()[-4000:]
                try:
                    if (await http.get("/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """End it as a service manager does."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        async with asyncio.timeout(60):
            await self.process.wait()

    def machines(self, name: str) -> list[int]:
        """Return the processes of machines, by a part of their command line."""
        assert self.process is not None
        return [pid for pid in descendants(self.process.pid) if name in command_line(pid).split(" ")[0]]

    def use(self) -> dict[str, int]:
        """Return the server's memory in KiB, its descriptors and its children."""
        assert self.process is not None
        pid = self.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return {
            "server, MiB": int(resident.split()[1]) // 1024,
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "processes below the server": len(descendants(pid)),
            "files in run": len(files_of_run(self.data_dir)),
        }

    def leftovers(self, *places: Path) -> list[str]:
        """Return what is there of a server that is stopped: processes, mounts and files of its machines.

        `places`: folders and programs beside the data folder that only its processes use.
        """
        wanted = [str(place) for place in (self.data_dir, *places)]
        found = [f"process {pid}: {text[:200]}" for pid, text in processes() if any(place in text for place in wanted)]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.data_dir) in line]
        found += [f"file {path}" for path in files_of_run(self.data_dir) if path.name not in ("worker", "server.json")]
        return found + [f"file {path}" for path in (self.data_dir / "machines").rglob("*")]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def processes() -> list[tuple[int, str]]:
    """Return every other process, with its folder and command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                found.append((int(name), f"{os.readlink(f'/proc/{name}/cwd')} {command_line(int(name))}"))
    return found
