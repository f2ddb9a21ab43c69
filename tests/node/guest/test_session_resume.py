"""A session whose machine is suspended and resumed: the host's end is new, the commands go on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.command import Command
from belljar.node.guest.files import Files
from belljar.node.guest.process import Process, TerminalSize
from belljar.node.guest.session import SessionRequest
from node.guest.test_listening_agent import Listening, listening  # noqa: F401 - a fixture

REQUEST = SessionRequest(isolated=False)


def command(*argv: str, folder: Path) -> Command:
    environment = {"PATH": "/usr/bin:/bin"}
    return Command(argv=argv, env=environment, cwd=str(folder), uid=os.getuid(), gid=os.getgid())


async def read_until(process: Process, text: bytes) -> bytes:
    received = b""
    async with asyncio.timeout(20):
        while text not in received:
            piece = await process.read()
            assert piece is not None, received
            received += piece.data
    return received


async def test_commands_go_on_with_their_input_output_terminal_and_exit(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            shell = await session.start(command("sh", "-c", "while read l; do echo got $l; done", folder=tmp_path))
            terminal = await session.start(command("cat", folder=tmp_path), terminal=TerminalSize(80, 24))
            ended = await session.start(command("sh", "-c", "exit 9", folder=tmp_path))
            unread = await session.start(command("sh", "-c", "seq 100000", folder=tmp_path))
            ends_meanwhile = await session.start(command("sh", "-c", "read l; exit 4", folder=tmp_path))
            await ended.wait()
            await shell.write(b"one\n")
            await read_until(shell, b"got one\n")
            await session.suspend()
            await session.wait_closed()
            with pytest.raises(ChannelBroken, match="paused"):
                await shell.write(b"lost")
            before = b"".join([data for _, data in unread._pieces])
            with pytest.raises(ChannelBroken, match="paused"):
                await ends_meanwhile.wait()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session() as session:
            again = session.processes
            assert {number: process.pid for number, process in again.items()} == {
                process.id: process.pid for process in (shell, terminal, ended, unread, ends_meanwhile)
            }
            exited = again[ended.id].exited
            assert exited is not None and exited.exit_code == 9
            await again[shell.id].write(b"two\n")
            assert await read_until(again[shell.id], b"\n") == b"got two\n"
            await again[shell.id].end_input()
            assert (await again[shell.id].wait()).exit_code == 0
            assert again[terminal.id].has_terminal
            await again[terminal.id].write(b"typed\n")
            await read_until(again[terminal.id], b"typed\r\ntyped\r\n")
            after = b"".join([piece.data async for piece in again[unread.id].output()])
            assert (before + after).split() == [str(number).encode() for number in range(1, 100_001)]
            await again[ends_meanwhile.id].write(b"\n")
            assert (await again[ends_meanwhile.id].wait()).exit_code == 4
            fresh = await session.start(command("true", folder=tmp_path))
            assert (await fresh.wait()).exit_code == 0


async def test_input_that_waits_is_kept_and_its_credit_is_right(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The pipe is full, so that the agent itself holds input; nothing of it may be lost or doubled."""
    data = os.urandom(280 * 1024)
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            reader = await session.start(command("sh", "-c", "read go; exec md5sum", folder=tmp_path))
            await reader.write(b"")
            held = await session.start(command("sh", "-c", "sleep 1; exec wc -c", folder=tmp_path))
            await held.write(data)
            await session.suspend()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session() as session:
            process = session.processes[held.id]
            await process.write(bytes(200 * 1024))
            await process.end_input()
            assert await read_until(process, b"\n") == f"{480 * 1024}\n".encode()


async def test_connections_and_file_operations_break_off_at_a_suspend(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            files = Files(session, root=str(tmp_path), uid=os.getuid(), gid=os.getgid())
            async with session.open_port(server.sockets[0].getsockname()[1]) as stream:
                with pytest.raises(ChannelBroken):
                    async with files.open_write("half", atomic=True) as writer:
                        await writer.write(b"x" * 100_000)
                        await session.suspend()
                        await writer.write(b"y")
                with pytest.raises(ChannelBroken):
                    await stream.read()
            assert not list(tmp_path.glob("*half*")) and not list(tmp_path.glob(".partial*"))
    server.close()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session() as session:
            assert not session.processes


async def test_the_hundredth_cycle_works_as_the_first(listening: Listening, tmp_path: Path) -> None:  # noqa: F811
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            counter = await session.start(
                command("sh", "-c", "i=0; while read l; do echo $((i+=1)); done", folder=tmp_path)
            )
            await session.suspend()
    for cycle in range(1, 101):
        async with listening.connection() as connection:
            await connection.resume(10)
            async with connection.resume_session() as session:
                process = session.processes[counter.id]
                await process.write(b"\n")
                assert await read_until(process, b"\n") == f"{cycle}\n".encode()
                async with session.open_command(command("true", folder=tmp_path)) as other:
                    assert (await other.wait()).exit_code == 0
                await session.suspend()


async def test_half_a_frame_of_a_host_that_died_while_it_was_suspended_is_forgotten(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            cat = await session.start(command("cat", folder=tmp_path))
            await session.suspend()
    _, writer = await asyncio.open_unix_connection(listening.address)
    writer.write(b"\x40\x00\x00\x00\x05\x00")
    await writer.drain()
    writer.close()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session() as session:
            process = session.processes[cat.id]
            await process.write(b"whole\n")
            assert await read_until(process, b"\n") == b"whole\n"


async def test_a_host_that_dies_without_suspending_ends_the_machine_and_its_commands(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            sleeper = await session.start(command("sleep", "60", folder=tmp_path))
    assert await listening.exit_code() == 0
    async with asyncio.timeout(10):
        while True:
            try:
                os.kill(sleeper.pid, 0)
            except ProcessLookupError:
                break
            await asyncio.sleep(0.01)


async def test_a_machine_that_dies_instead_of_suspending_is_an_error(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            listening.process.send_signal(signal.SIGKILL)
            with pytest.raises(MachineDied):
                await session.suspend()


async def test_what_a_process_that_an_ended_command_left_still_writes_is_dropped_after_a_resume_too(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    script = "(while ! [ -e go ]; do sleep 0.05; done; head -c 2000000 /dev/zero; touch done) &"
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            ended = await session.start(command("sh", "-c", script, folder=tmp_path))
            assert (await ended.wait()).exit_code == 0
            await session.suspend()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session(), asyncio.timeout(20):
            (tmp_path / "go").touch()
            while not (tmp_path / "done").exists():
                await asyncio.sleep(0.02)


async def test_a_command_that_was_being_closed_at_a_suspend_tells_its_exit_after_the_resume(
    listening: Listening,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        async with connection.open_session(REQUEST) as session:
            process = await session.start(command("sleep", "600", folder=tmp_path))
            await process.send_close()
            await session.suspend()
    async with listening.connection() as connection:
        await connection.resume(10)
        async with connection.resume_session() as session, asyncio.timeout(20):
            if again := session.processes.get(process.id):  # else it ended before the suspend
                assert (await again.wait()).signal == signal.SIGKILL
            fresh = await session.start(command("true", folder=tmp_path))
            assert (await fresh.wait()).exit_code == 0
