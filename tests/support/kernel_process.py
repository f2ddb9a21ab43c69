"""A kernel as a plain process of this host: its messages as what came of each piece of code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belljar.control.sandboxes.kernel_messages import LineReader, Message, parse
from belljar.control.sandboxes.kernels.programs import Kernel


@dataclass
class Ran:
    """What came of a piece of code."""

    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None
    count: int | None = None
    """None: the process ended."""
    exit_code: int | None = None

    @property
    def main(self) -> dict[str, Any]:
        (data,) = [each["data"] for each in self.results if each["is_main"]]
        return dict(data)

    @property
    def text(self) -> str:
        return str(self.main["text/plain"])


class KernelProcess:
    """The process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors = bytearray()
        self._lines = LineReader()
        self._waiting: list[Message] = []
        self._runs = 0

    async def run(self, code: str, *, interrupt_after: float | None = None) -> Ran:
        """Run code to its end, or the process's."""
        await self.send(code)
        if interrupt_after is not None:
            asyncio.get_running_loop().call_later(interrupt_after, self.interrupt)
        return await self.finish()

    async def send(self, code: str) -> None:
        self._runs += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"run": f"run {self._runs}", "code": code}).encode() + b"\n")
        await self.process.stdin.drain()

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    async def finish(self) -> Ran:
        ran = Ran()
        while (message := await self.next()) is not None:
            assert message.run == f"run {self._runs}", message
            if message.kind in ("stdout", "stderr"):
                setattr(ran, message.kind, getattr(ran, message.kind) + message.fields["text"])
            elif message.kind == "result":
                ran.results.append(message.fields)
            elif message.kind == "error":
                ran.error = message.fields
            elif message.kind == "done":
                ran.count = message.fields["execution_count"]
                return ran
        ran.exit_code = await self.process.wait()
        return ran

    async def next(self) -> Message | None:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while not self._waiting:
                data = await self.process.stdout.read(1 << 16)
                if not data:
                    return None
                self._waiting += map(parse, self._lines.feed(data))
        return self._waiting.pop(0)


@asynccontextmanager
async def kernel_process(kernel: Kernel, folder: Path, **env: str) -> AsyncIterator[KernelProcess]:
    """Start a kernel with this working folder; kill it, and what it started in its group, at the end."""
    process = await asyncio.create_subprocess_exec(
        *kernel.args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stderr is not None
    found = KernelProcess(process)
    reading = asyncio.create_task(_collect(process.stderr, found.errors))
    try:
        process.stdin.write(kernel.program)
        ready = await found.next()
        assert ready is not None and ready.kind == "ready", found.errors.decode()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reading


async def _collect(stream: asyncio.StreamReader, data: bytearray) -> None:
    while piece := await stream.read(1 << 16):
        data += piece
