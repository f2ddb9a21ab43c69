"""The agent and the host's connection together, over a socketpair."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest import wire
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.command import CommandFailed
from support.conversation import Collector, ConnectAgent


async def test_streams_come_separately_and_whole(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, out = await agent.run("sh", "-c", "echo one; echo two >&2; echo three; exit 3")
    assert (exited.exit_code, exited.signal) == (3, None)
    assert out.stdout == b"one\nthree\n"
    assert out.stderr == b"two\n"
    assert len(agent.started) == 1 and agent.started[0].pid > 0


async def test_usage_comes_at_its_interval_while_a_command_runs_and_never_after(connect_agent: ConnectAgent) -> None:
    received: list[Usage] = []
    async with connect_agent() as agent:
        await agent.connection.meter(0.1, received.append)
        await agent.run("sleep", "0.5", keep=True)
        of_the_first = len(received)
        await agent.run("sleep", "0.3", keep=True)
        of_both = len(received)
        await asyncio.sleep(0.3)
        await agent.run("true")
    assert 3 <= of_the_first <= 6 and of_the_first < of_both <= of_the_first + 5
    assert len(received) <= of_both + 1
    times = [usage.time_us for usage in received]
    assert times == sorted(times) and received[0].disk_limit_bytes > 0


async def test_arguments_and_environment_arrive_as_they_are(connect_agent: ConnectAgent) -> None:
    script = "import os,sys;print(sys.argv[1:], os.environ['GREETING'], sorted(os.environ))"
    async with connect_agent() as agent:
        _, out = await agent.run(sys.executable, "-c", script, "a b", "", "ü", env={"GREETING": "grüß\ndich"})
    assert out.stdout.decode().startswith("['a b', '', 'ü'] grüß\ndich ['GREETING'")


async def test_the_longest_argument_that_linux_takes_fits(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        _, out = await agent.run("sh", "-c", "echo ${#1}", "sh", "x" * (wire.MAX_PAYLOAD - 1))
    assert out.stdout == b"131071\n"


async def test_standard_input_larger_than_every_buffer_comes_back(connect_agent: ConnectAgent) -> None:
    data = os.urandom(3 << 20)
    async with connect_agent() as agent:
        exited, out = await agent.run("cat", stdin=data)
    assert exited.exit_code == 0
    assert out.stdout == data


async def test_a_job_that_reads_no_input_ends_all_the_same(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, _ = await agent.run("true", stdin=b"x" * (1 << 20))
        assert exited.exit_code == 0
    async with connect_agent() as agent:
        exited, out = await agent.run("sh", "-c", "exec <&-; sleep 0.2; echo done", stdin=b"x" * (1 << 20))
    assert out.stdout == b"done\n"


async def test_without_input_the_job_reads_its_end_at_once(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        _, out = await agent.run("wc", "-c")
    assert out.stdout.strip() == b"0"


async def test_a_signal_ends_the_job_and_is_reported(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        running = asyncio.create_task(agent.run("sleep", "60"))
        while not agent.started:
            await asyncio.sleep(0.01)
        await agent.connection.signal(signal.SIGTERM)
        exited, _ = await running
    assert (exited.exit_code, exited.signal) == (None, signal.SIGTERM)


async def test_sigkill_ends_a_job_that_ignores_sigterm(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        running = asyncio.create_task(agent.run("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"))
        while not agent.started:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await agent.connection.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert not running.done()
        await agent.connection.signal(signal.SIGKILL)
        exited, out = await running
    assert exited.signal == signal.SIGKILL
    assert out.stdout == b"up\n"


async def test_children_left_behind_do_not_hold_the_job(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, out = await agent.run("sh", "-c", "sleep 60 & echo bye")
    assert exited.exit_code == 0
    assert out.stdout == b"bye\n"


async def test_a_job_may_close_its_output_and_go_on(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, out = await agent.run("sh", "-c", "echo before; exec >&- 2>&-; sleep 0.2; exit 5")
    assert exited.exit_code == 5
    assert out.stdout == b"before\n"


@pytest.mark.parametrize("program", ["/nowhere/at/all", "no-such-program-anywhere"])
async def test_a_missing_command_fails_at_exec(connect_agent: ConnectAgent, program: str) -> None:
    async with connect_agent() as agent:
        with pytest.raises(CommandFailed) as failed:
            await agent.run(program)
    assert failed.value.stage is wire.Stage.EXEC
    assert failed.value.errno == 2


async def test_a_slow_reader_slows_the_writer_and_loses_nothing(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        _, out = await agent.run("head", "-c", "3000000", "/dev/zero", sink=Collector(delay=0.01))
    assert len(out.stdout) == 3_000_000


async def test_output_beyond_what_is_wanted_is_dropped_in_the_guest(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, out = await agent.run("head", "-c", "200000000", "/dev/zero", sink=Collector(full_after=100_000))
    assert exited.exit_code == 0
    assert 100_000 <= len(out.stdout) < 2_000_000


async def test_cpu_time_and_memory_are_counted(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        exited, _ = await agent.run(sys.executable, "-c", "x = bytearray(50_000_000)\nfor i in range(10**6): pass")
    assert exited.cpu_us > 10_000
    assert exited.max_memory_bytes > 50_000_000
    assert exited.run_us > 10_000


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["*.txt"], {"a.txt"}),
        (["out"], {"out/b.txt", "out/deep/c.bin"}),
        (["out/*.txt"], {"out/b.txt"}),
        (["**/*.bin"], {"out/deep/c.bin", "d.bin"}),
        (["**"], {"a.txt", "d.bin", "out/b.txt", "out/deep/c.bin"}),
        (["out/**/c.*", "a.*"], {"out/deep/c.bin", "a.txt"}),
        (["nothing*"], set()),
    ],
)
async def test_artifacts_are_what_the_globs_match(
    connect_agent: ConnectAgent, globs: list[str], expected: set[str]
) -> None:
    async with connect_agent() as agent:
        write_files(agent.folder, "a.txt", "d.bin", "out/b.txt", "out/deep/c.bin")
        (agent.folder / "link.txt").symlink_to("/etc/passwd")
        os.mkfifo(agent.folder / "pipe.txt")
        await agent.run("true")
        sink = Collector()
        collected = await agent.connection.collect(globs, sink, max_bytes=1 << 20, max_count=10)
    assert set(sink.files) == expected
    assert all(data == name.encode() * 1000 for name, data in sink.files.items())
    assert (collected.count, collected.skipped) == (len(expected), 0)


async def test_artifacts_over_the_limits_are_skipped_and_counted(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        (agent.folder / "big").write_bytes(os.urandom(5_000_000))
        (agent.folder / "huge").write_bytes(b"x" * 6_000_000)
        await agent.run("true")
        sink = Collector()
        collected = await agent.connection.collect(["big", "huge"], sink, max_bytes=5_500_000, max_count=10)
        assert (collected.count, collected.skipped) == (1, 1)
        assert bytes(sink.files["big"]) == (agent.folder / "big").read_bytes()
        sink = Collector()
        collected = await agent.connection.collect(["*"], sink, max_bytes=1 << 30, max_count=1)
    assert (collected.count, collected.skipped) == (1, 1)


async def test_a_file_name_that_is_not_utf8_is_skipped(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        Path(os.fsdecode(os.fsencode(agent.folder) + b"/bad\xff")).write_bytes(b"x" * 100)
        (agent.folder / "good").write_bytes(b"y")
        await agent.run("true")
        sink = Collector()
        collected = await agent.connection.collect(["*"], sink, max_bytes=1 << 20, max_count=10)
    assert set(sink.files) == {"good"}
    assert (collected.count, collected.skipped) == (1, 1)


async def test_an_agent_that_is_kept_runs_another_command_with_nothing_of_the_first(
    connect_agent: ConnectAgent,
) -> None:
    show = "echo $# $FIRST; echo err >&2; wc -c"
    async with connect_agent() as agent:
        exited, out = await agent.run("sh", "-c", show, "sh", "a", "b", env={"FIRST": "1"}, keep=True)
        assert (exited.exit_code, out.stdout, out.stderr) == (0, b"2 1\n0\n", b"err\n")
        exited, out = await agent.run("sh", "-c", show + "; exit 4", stdin=b"input")
        assert (exited.exit_code, out.stdout, out.stderr) == (4, b"0\n5\n", b"err\n")
    assert len(agent.started) == 2


async def test_output_that_was_not_wanted_of_the_first_command_is_wanted_of_the_second(
    connect_agent: ConnectAgent,
) -> None:
    async with connect_agent() as agent:
        await agent.run("sh", "-c", "yes | head -c 3000000", sink=Collector(full_after=1000), keep=True)
        exited, out = await agent.run("sh", "-c", "yes | head -c 3000000")
    assert exited.exit_code == 0 and len(out.stdout) == 3_000_000


async def test_a_kept_command_that_is_killed_leaves_a_ready_agent(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        first = asyncio.create_task(agent.run("sleep", "60", keep=True))
        while not agent.started:
            await asyncio.sleep(0.01)
        await agent.connection.signal(signal.SIGKILL)
        exited, _ = await first
        assert exited.signal == signal.SIGKILL
        _, out = await agent.run("echo", "still here")
    assert out.stdout == b"still here\n"


async def test_after_a_command_that_is_not_kept_no_other_is_taken(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        await agent.run("true")
        with pytest.raises(MachineDied):
            await agent.run("true")
