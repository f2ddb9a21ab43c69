"""Helpers for tests of the agent: its sources and compiler flags, sinks in memory, a connected agent process."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import pytest

from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.files import Files
from belljar.node.guest.session import Session, SessionRequest
from belljar.node.guest.wire import Exited, Started, Stream

AGENT = Path(str(files("belljar.node.guest") / "agent"))
PREFORK = Path(str(files("belljar.images") / "prefork"))
WARNINGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_with_agent(out: Path, main: Path, *options: str, sanitizers: Sequence[str] = SANITIZERS) -> None:
    """Compile the agent's files with `main` in place of main.c, warnings as errors. Skip the test without gcc."""
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("gcc is not installed")
    sources = [str(path) for path in sorted(AGENT.glob("*.c")) if path.name != "main.c"]
    command = [compiler, *WARNINGS, *sanitizers, *options, f"-I{AGENT}", "-o", str(out), str(main), *sources]
    subprocess.run(command, check=True, timeout=240)


@dataclass
class Collector:
    """A sink that keeps output and artifacts in memory."""

    output: dict[Stream, bytearray] = field(
        default_factory=lambda: {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    )
    full_after: int | None = None
    files: dict[str, bytearray] = field(default_factory=dict)
    current: str = ""
    delay: float = 0

    async def write(self, stream_or_data: Stream | bytes, data: bytes | None = None) -> None:
        if data is None:
            assert isinstance(stream_or_data, bytes)
            self.files[self.current] += stream_or_data
            return
        assert isinstance(stream_or_data, Stream)
        if self.delay:
            await asyncio.sleep(self.delay)
        self.output[stream_or_data] += data

    def full(self, stream: Stream) -> bool:
        return self.full_after is not None and len(self.output[stream]) >= self.full_after

    async def begin(self, path: str, size: int) -> None:
        self.current = path
        self.files[path] = bytearray()

    async def end(self) -> None:
        pass

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[Stream.STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[Stream.STDERR])


class ConnectedAgent:
    """An agent process and the connection to it."""

    def __init__(self, connection: AgentConnection, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.connection = connection
        self.process = process
        self.folder = folder
        self.started: list[Started] = []

    def command(self, *argv: str, env: dict[str, str] | None = None, keep: bool = False) -> Command:
        return Command(
            argv=argv, env={"PATH": "/usr/bin:/bin"} | (env or {}), cwd=str(self.folder), isolated=False, keep=keep
        )

    async def run(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
        sink: Collector | None = None,
        keep: bool = False,
    ) -> tuple[Exited, Collector]:
        return await self.run_command(self.command(*argv, env=env, keep=keep), stdin=stdin, sink=sink)

    async def run_command(
        self, command: Command, *, stdin: bytes = b"", sink: Collector | None = None
    ) -> tuple[Exited, Collector]:
        sink = sink or Collector()
        async with asyncio.timeout(60):
            return await self.connection.run(command, stdin, sink, self.started.append), sink

    def session_command(self, *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Command:
        """Return a command for a session."""
        environment = {"PATH": "/usr/bin:/bin"} | (env or {})
        return Command(argv=argv, env=environment, cwd=str(cwd or self.folder), uid=os.getuid(), gid=os.getgid())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Open a session without namespaces."""
        async with asyncio.timeout(60), self.connection.open_session(SessionRequest(isolated=False)) as session:
            yield session

    def files(self, session: Session, root: Path | None = None) -> Files:
        """Return the files below a folder of the test's own."""
        return Files(session, root=str(root or self.folder), uid=os.getuid(), gid=os.getgid())


def hang_up(connection: AgentConnection) -> None:
    """Close the stream to the agent, which then ends its machine."""
    connection._frames._writer.close()


ConnectAgent = Callable[[], AbstractAsyncContextManager[ConnectedAgent]]
