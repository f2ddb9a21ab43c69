"""Many commands at once over one stream: the agent as a process, a session of the host's on the other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from contextlib import aclosing

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest import wire
from belljar.node.guest.channel import ChannelBroken, TooManyChannels
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.process import OutputTooLarge, Process, ProcessEnded, TerminalSize
from belljar.node.guest.session import MAX_CHANNELS, MAX_COMMANDS, Session, SessionRequest
from belljar.node.guest.wire import Stream
from support.conversation import ConnectAgent, ConnectedAgent

MIB = 1 << 20


async def run(agent: ConnectedAgent, session: Session, *argv: str, stdin: bytes = b"") -> tuple[wire.Exited, bytes]:
    async with session.open_command(agent.session_command(*argv)) as process:
        exited, out, _ = await process.communicate(stdin, max_bytes=64 * MIB)
        return exited, out


async def read_until(process: Process, text: bytes) -> bytes:
    received = b""
    while text not in received:
        piece = await process.read()
        assert piece is not None, received
        received += piece.data
    return received


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]


async def wait_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_running(pid):
            await asyncio.sleep(0.01)


async def test_a_command_has_its_streams_its_exit_and_its_usage(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command("sh", "-c", 'cat; echo "$A" >&2; pwd; exit 3', env={"A": "ü\n"})
        async with session.open_command(command) as process:
            exited, out, err = await process.communicate(b"input\n", max_bytes=1000)
    assert (exited.exit_code, out, err) == (3, f"input\n{agent.folder}\n".encode(), "ü\n\n".encode())
    assert exited.run_us > 0 and exited.max_memory_bytes > 0


async def test_a_hundred_commands_run_at_once_and_each_gets_its_own_bytes(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        async with contextlib.AsyncExitStack() as stack:
            processes = [
                await stack.enter_async_context(
                    session.open_command(agent.session_command("sh", "-c", f"cat; echo {number}"))
                )
                for number in range(100)
            ]
            assert len({process.pid for process in processes}) == 100
            data = [bytes([number]) * 10_000 for number in range(100)]
            results = await asyncio.gather(
                *(p.communicate(d, max_bytes=20_000) for p, d in zip(processes, data, strict=True))
            )
        assert [out for _, out, _ in results] == [each + f"{n}\n".encode() for n, each in enumerate(data)]
        assert not session.processes


async def test_thousands_of_commands_in_sequence_leave_nothing(connect_agent: ConnectAgent) -> None:
    count = int(os.environ.get("BELLJAR_SESSION_COMMANDS", "1100"))  # more than the agent has places
    async with connect_agent() as agent, agent.connection.open_session(SessionRequest(isolated=False)) as session:
        before = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
        for _ in range(count):
            async with session.open_command(agent.session_command("true")) as process:
                assert (await process.wait()).exit_code == 0
        assert len(os.listdir(f"/proc/{agent.process.pid}/fd")) == before
        assert not session.processes and not session._channels


async def test_beyond_the_limit_a_command_is_refused_and_the_others_go_on(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        processes = [await session.start(agent.session_command("sleep", "60")) for _ in range(MAX_COMMANDS)]
        with pytest.raises(TooManyChannels):
            await session.start(agent.session_command("true"))
        await processes[0].close()
        assert (await run(agent, session, "echo", "again"))[1] == b"again\n"
        session_limit = session._new_number
        session._new_number = lambda limit, kind: 60_000  # type: ignore[method-assign]
        await session.start(agent.session_command("sleep", "60"))
        session._new_number = lambda limit, kind: 60_001  # type: ignore[method-assign]
        with pytest.raises(CommandFailed) as refused:  # the agent's own limit
            await session.start(agent.session_command("true"))
        assert os.strerror(refused.value.errno) == os.strerror(11)
        session._new_number = session_limit  # type: ignore[method-assign]
        await asyncio.gather(*(process.close() for process in [*session.processes.values()]))
        assert (await run(agent, session, "echo", "after"))[1] == b"after\n"


async def test_exits_that_nobody_fetches_are_kept_and_the_oldest_makes_room(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.connection.open_session(SessionRequest(isolated=False)) as session:
        first = await session.start(agent.session_command("sh", "-c", "exit 7"))
        assert (await first.wait()).exit_code == 7
        for _ in range(MAX_CHANNELS):
            await (await session.start(agent.session_command("true"))).wait()
        assert first.id not in session.processes and len(session.processes) == MAX_CHANNELS
        assert first.exited is not None and first.exited.exit_code == 7


async def test_a_slow_reader_stalls_its_own_command_only(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        stuck = [await session.start(agent.session_command("yes")) for _ in range(20)]
        exited, out = await run(agent, session, "head", "-c", str(20 * MIB), "/dev/zero")
        assert exited.exit_code == 0 and len(out) == 20 * MIB
        assert all(process.exited is None for process in stuck)
        held = sum(len(data) for process in stuck for _, data in process._pieces)
        assert held <= 20 * 32 * 1024
        assert (await stuck[0].read()) is not None


async def test_a_short_command_costs_one_message_to_the_agent(connect_agent: ConnectAgent) -> None:
    """Each message wakes the agent, which costs an emulated machine about as much as the command."""
    async with connect_agent() as agent, agent.session() as session:
        sent: list[bytes] = []
        send = session._state._send

        async def counted(data: bytes) -> None:
            sent.append(data)
            await send(data)

        session._state._send = counted
        process = await session.start(agent.session_command("sh", "-c", "cat; echo hello"), has_input=False)
        assert [piece.data async for piece in process.output()] == [b"hello\n"]
        assert (await process.wait()).exit_code == 0 and len(sent) == 1
        with pytest.raises(ProcessEnded):
            await process.write(b"x")
        await process.end_input()
        assert len(sent) == 1


async def test_the_window_is_wide_for_much_output_only(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        for size, wide in ((8 * 1024 - 1, 0), (8 * MIB, 1)):
            process = await session.start(agent.session_command("sh", "-c", f"head -c {size} /dev/zero; sleep 60"))
            received = 0
            while received < size:
                piece = await process.read()
                assert piece is not None
                received += len(piece.data)
            assert session._state.wide == wide
            await process.close()
        assert session._state.wide == 0


async def test_input_that_a_command_does_not_read_holds_up_no_other(connect_agent: ConnectAgent) -> None:
    data = os.urandom(3 * MIB)
    async with connect_agent() as agent, agent.session() as session:
        sleeper = await session.start(agent.session_command("sleep", "60"))
        stuck = asyncio.create_task(sleeper.write(bytes(MIB)))
        assert (await run(agent, session, "cat", stdin=data))[1] == data
        assert not stuck.done()
        await sleeper.signal(signal.SIGKILL)
        with pytest.raises(ProcessEnded):
            await stuck


async def test_input_to_what_has_ended_is_a_clear_error(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("true"))
        await process.wait()
        with pytest.raises(ProcessEnded, match=f"process {process.pid} has ended"):
            await process.write(b"x")
        with pytest.raises(ProcessEnded):
            await process.signal(signal.SIGTERM)
        await process.end_input()
        await process.close()
        await process.close()


async def test_a_terminal_has_a_size_echoes_and_is_the_controlling_one(connect_agent: ConnectAgent) -> None:
    script = "stty size; tty; echo ready >/dev/tty; read line; stty size; echo got $line"
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command("sh", "-c", script)
        async with session.open_command(command, terminal=TerminalSize(100, 30)) as process:
            out = await read_until(process, b"ready")
            await process.resize(TerminalSize(90, 20))
            await process.write(b"abc\n")
            out += await read_until(process, b"got abc")
            assert (await process.wait()).exit_code == 0
    assert b"30 100\r\n/dev/pts/" in out and b"abc\r\n20 90\r\n" in out


async def test_control_c_interrupts_what_runs_in_the_terminal(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
        command = agent.session_command("sh", "-c", script)
        async with session.open_command(command, terminal=TerminalSize(80, 24)) as process:
            await read_until(process, b"ready")
            await process.write(b"\x03")
            await read_until(process, b"caught")
            assert (await process.wait()).exit_code == 5


async def test_a_terminal_nobody_reads_stalls_its_own_command_only_and_loses_nothing(
    connect_agent: ConnectAgent,
) -> None:
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command("sh", "-c", "seq 200000; echo end")
        process = await session.start(command, terminal=TerminalSize(80, 24))
        assert (await run(agent, session, "echo", "free"))[1] == b"free\n"
        out = b"".join([piece.data async for piece in process.output()])
        assert out.split() == [str(number).encode() for number in range(1, 200_001)] + [b"end"]


async def test_what_a_shell_leaves_in_its_terminal_does_not_hold_its_exit(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command("sh", "-c", "trap '' HUP; sleep 60 & echo $!")
        async with session.open_command(command, terminal=TerminalSize(80, 24)) as process:
            out = b"".join([piece.data async for piece in process.output()])
            assert (await process.wait()).exit_code == 0
        os.kill(int(out), signal.SIGKILL)


async def test_a_signal_reaches_the_process_group(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        async with session.open_command(agent.session_command("sh", "-c", "sleep 60 & echo $!; wait")) as process:
            child = int(await read_until(process, b"\n"))
            await process.signal(signal.SIGTERM)
            assert (await process.wait()).signal == signal.SIGTERM
        await wait_gone(child)


async def test_leaving_the_block_kills_the_command(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        async with session.open_command(
            agent.session_command("sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait")
        ) as process:
            child = int(await read_until(process, b"\n"))
        assert not is_running(process.pid) and not session.processes
        await wait_gone(child)
        with pytest.raises(ChannelBroken):
            await process.wait()


async def test_a_background_program_outlives_its_shell_and_its_output_does_not_end_it(
    connect_agent: ConnectAgent,
) -> None:
    script = "(while echo tick; do sleep 0.02; done) & echo $!"
    async with connect_agent() as agent, agent.session() as session:
        async with session.open_command(agent.session_command("sh", "-c", script)) as process:
            _, out, _ = await process.communicate(max_bytes=10_000)
        child = int(out.split(b"\n")[0] if not out.startswith(b"tick") else out.split()[-1])
        await asyncio.sleep(0.3)
        assert is_running(child)
        os.kill(child, signal.SIGKILL)
        await wait_gone(child)


@pytest.mark.parametrize("program", ["/nowhere/at/all", "no-such-program"])
async def test_a_missing_program_is_a_clear_error_and_the_session_goes_on(
    connect_agent: ConnectAgent, program: str
) -> None:
    async with connect_agent() as agent, agent.session() as session:
        with pytest.raises(CommandFailed) as failed:
            await session.start(agent.session_command(program))
        assert (failed.value.stage, failed.value.errno) == (wire.Stage.EXEC, 2)
        with pytest.raises(CommandFailed):
            await session.start(agent.session_command("true", cwd=agent.folder / "missing"))
        assert not session.processes
        assert (await run(agent, session, "echo", "on"))[1] == b"on\n"


async def test_output_that_is_discarded_does_not_hold_up_the_command(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("sh", "-c", "head -c 50000000 /dev/zero; echo kept >&2"))
        await process.discard(Stream.STDOUT)
        assert (await process.wait()).exit_code == 0
        assert b"kept\n" in [piece.data async for piece in process.output()]


async def test_output_larger_than_wanted_is_refused(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("yes"))
        with pytest.raises(OutputTooLarge, match="more than 100000 bytes"):
            await process.communicate(max_bytes=100_000)


async def test_orphans_are_reaped(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        _, out = await run(
            agent, session, "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.05 & echo $!); done; echo $PPID"
        )
        *orphans, init = [int(line) for line in out.split()]
        for orphan in orphans:
            await wait_gone(orphan)
        async with asyncio.timeout(10):
            while any(os.path.exists(f"/proc/{orphan}") for orphan in orphans):
                await asyncio.sleep(0.01)
        assert is_running(init)


async def test_when_the_sandboxes_init_dies_every_channel_is_broken(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("sleep", "60"))
        _, out = await run(agent, session, "sh", "-c", "echo $PPID")
        os.kill(int(out), signal.SIGKILL)
        with pytest.raises(ChannelBroken):
            await process.wait()
        with pytest.raises(MachineDied):
            await session.wait_closed()
        with pytest.raises(ChannelBroken):
            await session.start(agent.session_command("true"))


async def test_usage_comes_at_its_interval_until_it_is_not_wanted(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        received = []
        async for usage in session.usage(0.1):
            received.append(usage)
            if len(received) == 3:
                break
        times = [usage.time_us for usage in received]
        assert times == sorted(times) and times[0] < times[-1]
        assert received[0].disk_limit_bytes > 0
        assert (await run(agent, session, "echo", "on"))[1] == b"on\n"


async def test_the_shortest_interval_that_a_reader_of_usage_wants_holds(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        async with aclosing(session.usage(30)) as seldom, aclosing(session.usage(0.1)) as often:
            first = await anext(seldom)
            assert (await anext(often)).time_us >= first.time_us
            assert (await anext(seldom)).time_us > first.time_us
            await often.aclose()
            slow = asyncio.create_task(anext(seldom))
            await asyncio.sleep(0.5)
            assert session._meter._interval_ms == 30_000
            slow.cancel()
            await asyncio.wait({slow})
        assert session._meter._interval_ms == 0


async def test_the_longest_argument_and_much_environment_arrive(connect_agent: ConnectAgent) -> None:
    script = "import os,sys; print(len(sys.argv[1]), sum(len(v) for k, v in os.environ.items() if k[0] == 'V'))"
    env = {f"V{number}": "x" * 1000 for number in range(300)}
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command(sys.executable, "-c", script, "y" * (wire.MAX_PAYLOAD - 1), env=env)
        async with session.open_command(command) as process:
            _, out, _ = await process.communicate(max_bytes=1000)
    assert out == b"131071 300000\n"


async def test_starts_that_are_cancelled_leave_no_process(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        for _ in range(20):
            starting = asyncio.create_task(session.start(agent.session_command("sleep", "60")))
            await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
        assert (await run(agent, session, "echo", "on"))[1] == b"on\n"
        async with asyncio.timeout(10):
            while session._channels:
                await asyncio.sleep(0.01)
