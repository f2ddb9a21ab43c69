"""A session in a real machine: what only its namespaces, cgroups and user show; then frozen, and cloned twice."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.files import FileFailed, Files
from belljar.node.guest.process import Process, TerminalSize
from belljar.node.guest.session import Session, SessionRequest
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings

pytestmark = pytest.mark.vm

BOOT_SECONDS = 120
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/job"}
SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 8000))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    data = connection.makefile("rb").read()
    connection.sendall(data[::-1])
    connection.close()
"""


def shell(script: str, **options: int) -> Command:
    return Command(argv=["sh", "-c", script], env=ENV, **options)  # type: ignore[arg-type]


async def run(session: Session, script: str, stdin: bytes = b"") -> bytes:
    async with session.open_command(shell(script)) as process:
        exited, out, err = await process.communicate(stdin, max_bytes=1 << 20)
        assert exited.exit_code == 0, (exited, out, err)
        return out


async def read_until(process: Process, text: bytes) -> bytes:
    received = b""
    async with asyncio.timeout(BOOT_SECONDS):
        while text not in received:
            piece = await process.read()
            assert piece is not None, received
            received += piece.data
    return received


@asynccontextmanager
async def opened(connection: AgentConnection) -> AsyncIterator[Session]:
    await connection.open(BOOT_SECONDS)
    async with connection.open_session(SessionRequest(max_processes=100)) as session:
        yield session


async def test_a_sandbox_runs_commands_files_terminals_and_ports_and_is_cloned_with_them(
    built_images: Path, tmp_path: Path
) -> None:
    hypervisor = QemuHypervisor(Settings(data_dir=tmp_path), "tcg")
    image = Images(built_images).get("python")
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=192), script_disk=None)
    folder = tmp_path / "snapshot"
    folder.mkdir(mode=0o700)
    async with asyncio.timeout(300):
        async with hypervisor.snapshot_source(spec, folder) as source:
            async with opened(AgentConnection(source.reader, source.writer, timeout_factor=4)) as session:
                await check_commands(session)
                await check_kill(session)
                await check_terminal(session)
                await check_files(session)
                await check_memory_limit(session)
                server = await session.start(Command(argv=["python3", "-c", SERVER], env=ENV))
                await read_until(server, b"listening")
                counter = await session.start(shell("n=0; while read line; do n=$((n+1)); echo $n $line; done"))
                await check_port(session)
                await check_usage(session)
                await session.suspend()
            await source.freeze()
        try:
            for name in (b"first", b"second"):
                async with hypervisor.clone(spec, folder) as clone:
                    connection = AgentConnection(clone.reader, clone.writer, timeout_factor=4)
                    await connection.resume(BOOT_SECONDS)
                    async with connection.resume_session() as session:
                        assert set(session.processes) == {server.id, counter.id}
                        again = session.processes[counter.id]
                        await again.write(name + b"\n")
                        assert await read_until(again, b"\n") == b"1 " + name + b"\n"
                        await check_port(session)
                        assert await run(session, "cat /tmp/kept") == b"kept"
        finally:
            hypervisor.release_snapshot(folder)


async def check_commands(session: Session) -> None:
    """The commands share the sandbox: its processes, its files, its user; the agent is not in it."""
    out = await run(session, "id -u; pwd; echo kept >/work/a; cat /proc/1/comm; ls -A /proc/1/fd 2>&1 | wc -l")
    assert out.split() == [b"1000", b"/work", b"init", b"1"]
    assert await run(session, "cat /work/a; cat", b"in") == b"kept\nin"
    sleepers = [await session.start(shell("sleep 300")) for _ in range(3)]
    listed = await run(session, "ls /proc | grep -E '^[0-9]+$'")
    assert {str(process.pid).encode() for process in sleepers} <= set(listed.split())
    for process in sleepers:
        await process.close()
    with pytest.raises(CommandFailed) as failed:  # root owns what the mode of a file alone protects
        await session.start(shell("id", uid=0, gid=0))
    assert failed.value.errno == errno.EPERM
    results = await asyncio.gather(*(run(session, f"echo {number}") for number in range(30)))
    assert results == [f"{number}\n".encode() for number in range(30)]


async def check_kill(session: Session) -> None:
    """Descendants that have left the process group are killed with their command, but not by a signal to its group."""
    process = await session.start(shell("setsid sh -c 'echo $$; exec sleep 300' & wait"))
    child = int(await read_until(process, b"\n"))
    await process.signal(signal.SIGTERM)
    await process.wait()
    assert await run(session, f"kill -0 {child} && echo alive") == b"alive\n"
    await process.signal(signal.SIGKILL, descendants=True)
    assert await run(session, f"while kill -0 {child} 2>/dev/null; do sleep 0.01; done") == b""
    await process.close()


async def check_terminal(session: Session) -> None:
    script = "test -t 0 && tty && stty size && ls -l $(tty) | cut -c1-10 && read line && echo got $line"
    async with session.open_command(shell(script), terminal=TerminalSize(101, 31)) as process:
        out = await read_until(process, b"crw")
        await process.write(b"typed\n")
        out += await read_until(process, b"got typed")
        assert (await process.wait()).exit_code == 0
    assert b"/dev/pts/" in out and b"31 101" in out and b"crw--w----" in out


async def check_files(session: Session) -> None:
    """Operations have the rights of the sandbox's user, and see what its commands see."""
    files = Files(session)
    async with files.open_write("/tmp/kept", atomic=True) as writer:
        await writer.write(b"kept")
    assert (await files.stat("/tmp/kept")).uid == 1000
    assert await run(session, "cat /tmp/kept") == b"kept"
    for path in ("/etc/shadow", "/root/x", "/proc/1/environ", "/proc/1/root/init"):
        with pytest.raises(FileFailed):
            async with files.open_read(path):
                pass
    with pytest.raises(FileFailed) as failed:
        await files.mkdir("/etc/new")
    assert failed.value.errno == errno.EACCES
    with pytest.raises(FileFailed):
        async with files.open_write("/new", atomic=True) as writer:
            await writer.write(b"x" * 200_000)
    data = bytes(range(256)) * 8192
    async with files.open_write("/work/large") as writer:
        await writer.write(data)
    async with files.open_read("/work/large") as reader:
        assert b"".join([piece async for piece in reader]) == data


async def check_memory_limit(session: Session) -> None:
    """A command that takes too much memory is killed, counted as such, and takes nothing else down."""
    hog = Command(argv=["python3", "-c", "x = bytearray(10**9)"], env=ENV)
    async with session.open_command(hog) as process:
        exited = await process.wait()
    assert exited.exit_code == 1 or (exited.signal == signal.SIGKILL and exited.oom_kills == 1)
    assert await run(session, "echo on") == b"on\n"


async def check_port(session: Session) -> None:
    """A port inside is reached without any network device."""
    assert ("127.0.0.1", 8000) in [(port.address, port.port) for port in await Files(session).ports()]
    async with session.open_port(8000) as stream:
        await stream.write(b"abc" * 50_000)
        await stream.close_write()
        assert b"".join([piece async for piece in stream]) == b"cba" * 50_000


async def check_usage(session: Session) -> None:
    async for usage in session.usage(0.2):
        assert usage.cpu_us > 0 and 0 < usage.memory_bytes < usage.memory_limit_bytes < 192 << 20
        assert usage.processes >= 2 and usage.disk_limit_bytes > 0
        break
