"""Descriptors of the agent and of its reapers: none is lost when something fails, none is where it does not belong."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import pytest

from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.session import SessionRequest
from node.guest.test_listening_agent import Listening, listening
from support.conversation import Collector, ConnectAgent, compile_with_agent

pytestmark = pytest.mark.process

__all__ = ["listening"]

WAITING = Command(argv=[], env={}, cwd="/", isolated=False)


def descriptors(pid: int) -> list[str]:
    """What the descriptors of a process lead to, above the standard ones."""
    folder = Path(f"/proc/{pid}/fd")
    return sorted(os.readlink(path) for path in folder.iterdir() if int(path.name) > 2)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_processes_that_cannot_be_started_leave_no_descriptor_behind(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        pid, before = agent.process.pid, descriptors(agent.process.pid)
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        free = [number for number in range(1000) if number not in used]
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        polled = 8  # poll(2) takes no more than the limit, and the agent has so many
        for limit in [number for number in free[:12] if number >= polled]:  # twelve are wanted: there is one too many
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(CommandFailed, match="Too many open files"):
                await agent.connection.prepare(WAITING)
            assert descriptors(pid) == before
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        exited, out = await agent.run("echo", "still here")
        assert (exited.exit_code, out.stdout) == (0, b"still here\n")


async def test_a_prefork_program_that_is_not_there_leaves_no_descriptor_behind(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        before = descriptors(agent.process.pid)
        for _ in range(20):
            with pytest.raises(CommandFailed):
                await agent.connection.prepare(
                    Command(argv=["true"], env={}, cwd="/", isolated=False, prefork="missing")
                )
        assert descriptors(agent.process.pid) == before


async def test_a_reaper_has_its_own_descriptors_alone(listening: Listening) -> None:
    """Not the agent's listener, nor another set's pipes, nor the agent's ends of its own."""
    async with listening.connection() as connection:
        await connection.open(10)
        for _ in range(3):
            await connection.prepare(WAITING)
        for reaper in children(listening.process.pid):
            found = descriptors(reaper)
            # Three streams, reports and control; the order's socket; its signals.
            assert sum(each.startswith("pipe:") for each in found) == 5
            assert sum(each.startswith("socket:") for each in found) == 1
            assert [each for each in found if not each.startswith(("pipe:", "socket:"))] == ["anon_inode:[signalfd]"]


async def test_a_writer_gets_epipe_when_its_output_has_no_reader(connect_agent: ConnectAgent, tmp_path: Path) -> None:
    """No process of the job's own side keeps the reading end of its output open."""
    async with connect_agent() as agent:
        running = asyncio.create_task(agent.run("sleep", "60"))
        while not agent.started:
            await asyncio.sleep(0.01)
        (reaper,) = children(agent.process.pid)
        (sleeper,) = children(reaper)
        readers = {os.readlink(f"/proc/{sleeper}/fd/1"), os.readlink(f"/proc/{sleeper}/fd/2")}
        assert readers.isdisjoint(descriptors(reaper))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_reaper_that_is_killed_before_it_starts_the_command_is_reported(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        await agent.connection.prepare(WAITING)
        (reaper,) = children(agent.process.pid)
        os.kill(reaper, 9)
        with pytest.raises(CommandFailed):
            await agent.run("true")


def test_a_child_that_ends_before_its_exec_is_no_success(tmp_path: Path) -> None:
    import subprocess

    binary = tmp_path / "traced"
    compile_with_agent(binary, Path(__file__).with_name("traced.c"))
    result = subprocess.run([binary], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout == "error 1 reaped 1 left 0\n"


async def test_the_agent_as_an_ordinary_process_never_isolates(connect_agent: ConnectAgent) -> None:
    """It would mount on the host that it runs on."""
    from belljar.model.errors import MachineDied

    async with connect_agent() as agent:
        with pytest.raises(MachineDied):
            await agent.connection.run(Command(argv=["true"], env={}), b"", Collector(), lambda _: None)


async def test_a_session_has_a_descriptor_for_every_channel_and_its_commands_the_usual_limit(
    connect_agent: ConnectAgent,
) -> None:
    """The limit is that of a machine's PID 1: poll(2) takes no more descriptors than it."""
    async with connect_agent() as agent:
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        async with agent.connection.open_session(SessionRequest(isolated=False)) as session:
            for _ in range(400):
                ended = await session.start(agent.session_command("true"))
                assert (await ended.wait()).exit_code == 0
            assert len(session.processes) == 400
            async with session.open_command(agent.session_command("sh", "-c", "ulimit -n")) as process:
                _, out, _ = await process.communicate(max_bytes=100)
    assert out == b"1024\n"
