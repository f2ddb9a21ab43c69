"""A sandbox's machine as its callers use it: commands, files and ports of a real agent, through the whole node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import InvalidOption
from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import (
    CannotStart,
    FileConflict,
    FileForbidden,
    FileMissing,
    InvalidArchive,
    PortRefused,
    ProcessEnded,
    ProcessNotFound,
    SandboxEnded,
    StreamBroken,
)
from belljar.model.sandbox_values import (
    FileChange,
    FileKind,
    ProcessExit,
    ProcessInfo,
    ProcessOutput,
    ProcessRequest,
    TerminalSize,
    WriteOptions,
)
from belljar.node.sandboxes import calls
from support.worker_harness import WorkerHarness

STDOUT, STDERR = LogStream.STDOUT, LogStream.STDERR


@pytest.fixture
async def machine(harness: WorkerHarness) -> AsyncIterator[SandboxMachine]:
    """The machine of a running sandbox."""
    async with harness.working():
        _, machine = await harness.running_sandbox(env={"GREETING": "hello"})
        yield machine


def shell(text: str, **fields: object) -> ProcessRequest:
    return ProcessRequest(**{"args": ("sh", "-c", text), "stdin": b"", **fields})  # type: ignore[arg-type]


async def output_of(machine: SandboxMachine, process: ProcessInfo) -> tuple[ProcessExit, bytes, bytes]:
    received = {STDOUT: bytearray(), STDERR: bytearray()}
    async for piece in machine.output(process.id):
        if isinstance(piece, ProcessExit):
            return piece, bytes(received[STDOUT]), bytes(received[STDERR])
        assert piece.offset == len(received[piece.stream])
        received[piece.stream] += piece.data
    raise AssertionError("the output had no end")


async def run(machine: SandboxMachine, text: str, **fields: object) -> tuple[ProcessExit, bytes, bytes]:
    async with asyncio.timeout(30):
        return await output_of(machine, await machine.start(shell(text, **fields)))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def test_a_command_has_streams_an_exit_and_an_environment(machine: SandboxMachine) -> None:
    ended, out, err = await run(
        machine, 'cat; echo "$GREETING $A"; echo oops >&2; exit 3', stdin=b"in\n", env={"A": "1"}
    )
    assert (ended.exit_code, ended.signal, out, err) == (3, None, b"in\nhello 1\n", b"oops\n")
    assert ended.duration_ms > 0 and ended.max_memory_mb > 0


async def test_large_output_is_whole_for_a_reader_that_comes_late(machine: SandboxMachine) -> None:
    process = await machine.start(shell("head -c 3000000 /dev/zero; echo end >&2"))
    await asyncio.sleep(0.2)
    assert (await machine.process(process.id)).exit is None  # it waits for its reader
    ended, out, err = await output_of(machine, process)
    assert (ended.exit_code, len(out), err) == (0, 3_000_000, b"end\n")
    kept = await machine.process(process.id)
    assert kept.exit == ended and (kept.stdout_bytes, kept.stderr_bytes) == (3_000_000, 4)


async def test_a_background_command_is_not_held_up_and_its_exit_is_kept(machine: SandboxMachine) -> None:
    process = await machine.start(shell("head -c 3000000 /dev/zero; echo end", background=True))
    ended = await machine.wait(process.id, 30)
    assert ended.exit is not None and ended.exit.exit_code == 0 and ended.stdout_bytes == 3_000_004
    last = [piece async for piece in machine.output(process.id)]
    assert isinstance(last[-1], ProcessExit)
    assert isinstance(last[0], ProcessOutput) and last[0].offset > 2_000_000


async def test_a_terminal_echoes_resizes_and_takes_control_characters(machine: SandboxMachine) -> None:
    process = await machine.start(ProcessRequest(args=("sh",), terminal=TerminalSize(columns=80, rows=24)))
    seen = bytearray()

    async def until(text: bytes) -> None:
        async with asyncio.timeout(30):
            async for piece in machine.output(process.id, stdout_from=len(seen)):
                assert isinstance(piece, ProcessOutput)
                seen.extend(piece.data)
                if text in seen:
                    return

    await machine.resize(process.id, TerminalSize(columns=123, rows=45))
    # The program that ^C ends says that it runs: between two commands of a line, the terminal's foreground process
    # group is that of the first one, which has ended, and a signal reaches nobody.
    await machine.write_input(process.id, b"stty size; sh -c 'echo $((6*7)) runs; exec sleep 1000'\n")
    await until(b"42 runs")
    assert b"45 123" in seen
    await machine.write_input(process.id, b"\x03")
    await machine.write_input(process.id, b"echo still $((40+2))\nexit 7\n")
    await until(b"still 42")
    ended = await machine.wait(process.id, 30)
    assert ended.exit is not None and ended.exit.exit_code == 7 and ended.terminal
    with pytest.raises(ProcessEnded):
        await machine.write_input(process.id, b"late")


async def test_input_comes_later_and_ends(machine: SandboxMachine) -> None:
    process = await machine.start(shell("cat", stdin=None))
    await machine.write_input(process.id, b"a" * 300_000)
    await machine.write_input(process.id, b"b")
    await machine.end_input(process.id)
    await machine.end_input(process.id)
    ended, out, _ = await output_of(machine, process)
    assert (ended.exit_code, out) == (0, b"a" * 300_000 + b"b")


async def test_signals_kill_and_forget(machine: SandboxMachine) -> None:
    process = await machine.start(shell("trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.05; done"))
    reading = machine.output(process.id)
    assert isinstance(first := await anext(reading), ProcessOutput) and first.data == b"up\n"
    await machine.signal(process.id, "TERM")
    assert next(each for each in [piece async for piece in reading] if isinstance(each, ProcessExit)).exit_code == 5
    with pytest.raises(ProcessEnded):
        await machine.signal(process.id, "SIGTERM")
    with pytest.raises(InvalidOption, match="SIGNOPE"):
        await machine.signal(process.id, "SIGNOPE")
    stubborn = await machine.start(shell("head -c 1000000 /dev/zero; sleep 1000"))
    await machine.kill(stubborn.id)
    ended = await machine.wait(stubborn.id, 30)
    assert ended.exit is not None and ended.exit.signal == "SIGKILL"
    assert [each.id for each in await machine.processes()] == [process.id, stubborn.id]
    await machine.forget(stubborn.id)
    for call in (machine.forget, machine.process, machine.kill):
        with pytest.raises(ProcessNotFound):
            await call(stubborn.id)


async def test_what_cannot_be_started_says_why(machine: SandboxMachine) -> None:
    with pytest.raises(CannotStart, match="No such file or directory"):
        await machine.start(ProcessRequest(args=("no-such-program",)))
    with pytest.raises(CannotStart):
        await machine.start(shell("true", cwd="/no/such/folder"))
    with pytest.raises(InvalidOption, match="NUL"):
        await machine.start(ProcessRequest(args=("echo", "a\0b")))


async def test_a_hundred_commands_at_once_and_many_in_sequence(machine: SandboxMachine) -> None:
    ends = await asyncio.gather(*(run(machine, f"echo {number}; exit {number}") for number in range(100)))
    assert [(ended.exit_code, out) for ended, out, _ in ends] == [(n, f"{n}\n".encode()) for n in range(100)]
    for number in range(300):
        process = await machine.start(shell(f"exit {number % 100}"))
        assert (await output_of(machine, process))[0].exit_code == number % 100
    assert len(await machine.processes()) <= 257  # the oldest that ended are forgotten


async def test_files_are_written_read_listed_moved_and_removed(machine: SandboxMachine, tmp_path: Path) -> None:
    files, folder = machine.files, str(tmp_path / "box")
    written = await files.write(f"{folder}/a/b.txt", pieces(b"hello ", b"world" * 100_000), WriteOptions(mode=0o600))
    assert (written.kind, written.size_bytes, written.mode) == (FileKind.FILE, 500_006, 0o600)
    async with files.read(f"{folder}/a/b.txt", offset=6, length=5) as content:
        assert [piece async for piece in content] == [b"world"] and content.entry.size_bytes == 500_006
    await files.mkdir(f"{folder}/c")
    await files.move(f"{folder}/a/b.txt", f"{folder}/c/d")
    await files.chmod(f"{folder}/c/d", 0o644)
    found = {entry.path: entry.kind async for entry in files.list(folder, depth=3)}
    assert found == {"a": FileKind.FOLDER, "c": FileKind.FOLDER, "c/d": FileKind.FILE}
    with pytest.raises(FileConflict):
        await files.remove(f"{folder}/c")
    await files.remove(f"{folder}/c", recursive=True)
    with pytest.raises(FileMissing) as error:
        await files.stat(f"{folder}/c")
    assert error.value.details == {"errno": "ENOENT"}
    with pytest.raises(FileConflict):
        await files.write(folder, pieces(b"x"))
    with pytest.raises(InvalidOption, match="NUL"):
        await files.stat("a\0b")


async def test_a_write_whose_source_breaks_off_leaves_the_old_file(machine: SandboxMachine, tmp_path: Path) -> None:
    path = str(tmp_path / "kept")
    await machine.files.write(path, pieces(b"old"))

    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise RuntimeError("the client is gone")

    with pytest.raises(RuntimeError, match="the client is gone"):
        await machine.files.write(path, broken())
    assert Path(path).read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith((".", "kept"))] == ["kept"]


async def test_archives_go_out_and_in(machine: SandboxMachine, tmp_path: Path) -> None:
    (tmp_path / "from/deep").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    (tmp_path / "from/deep/file").write_bytes(b"x" * 200_000)
    (tmp_path / "from/link").symlink_to("deep/file")
    data = b"".join([piece async for piece in machine.files.archive(str(tmp_path / "from"))])
    await machine.files.extract(str(tmp_path / "to"), pieces(data[:1000], data[1000:]))
    assert (tmp_path / "to/link").readlink() == Path("deep/file")
    assert (tmp_path / "to/deep/file").read_bytes() == b"x" * 200_000
    with pytest.raises(InvalidArchive):
        await machine.files.extract(str(tmp_path / "to"), pieces(b"no archive" * 100))


async def test_a_watched_folder_tells_its_changes(machine: SandboxMachine, tmp_path: Path) -> None:
    async with machine.files.watch(str(tmp_path)) as events, asyncio.timeout(30):
        (tmp_path / "new").write_text("x")
        async for event in events:
            if event.change is FileChange.WRITTEN:
                assert event.path == "new"
                break


SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    while data := peer.recv(65536):
        peer.sendall(data.upper())
    peer.close()
"""


async def test_a_port_is_listed_and_carries_bytes_both_ways(machine: SandboxMachine) -> None:
    server = await machine.start(ProcessRequest(args=(sys.executable, "-c", SERVER), background=True))
    first = await anext(machine.output(server.id))
    assert isinstance(first, ProcessOutput)
    port = int(first.data)
    assert port in {each.port for each in await machine.ports()}
    async with machine.connect(port) as stream:
        await stream.write(b"hello" * 1000)
        await stream.close_write()
        assert b"".join([data async for data in stream]) == b"HELLO" * 1000
    await machine.kill(server.id)
    await machine.wait(server.id, 30)
    with pytest.raises(PortRefused):
        async with machine.connect(port):
            pass
    with pytest.raises(InvalidOption, match="65536"):
        async with machine.connect(65536):
            pass


async def test_it_tells_its_usage_and_how_it_is_used(machine: SandboxMachine) -> None:
    usage = await machine.usage()
    assert usage.uptime_seconds > 0 and usage.processes >= 0
    assert (await machine.activity()).in_use == 0
    foreground = await machine.start(shell("sleep 1000"))
    background = await machine.start(shell("sleep 1000", background=True))
    assert (await machine.activity()).in_use == 1
    await machine.discard_output(foreground.id)
    activity = await machine.activity()
    assert activity.in_use == 0 and activity.idle_seconds >= 0
    for process in (foreground, background):
        await machine.forget(process.id)


async def test_calls_under_way_break_off_visibly_when_it_ends(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await harness.running_sandbox()
        process = await machine.start(shell("echo up; sleep 1000"))
        reading = machine.output(process.id)
        await anext(reading)
        waiting = asyncio.create_task(machine.wait(process.id))
        await asyncio.sleep(0.05)
        await harness.delete_sandbox(sandbox)
        async with asyncio.timeout(30):
            with pytest.raises(StreamBroken):
                await anext(reading)
            with pytest.raises(StreamBroken):
                await waiting
        for call in (machine.processes(), machine.usage(), machine.files.stat("/"), machine.start(shell("true"))):
            with pytest.raises(SandboxEnded, match="it was deleted"):
                await call
        with contextlib.suppress(FileForbidden), pytest.raises(SandboxEnded):
            async with machine.files.read("/etc/hostname"):
                pass


async def test_a_guest_that_stopped_its_agent_leaves_no_caller_waiting(
    machine: SandboxMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"100.{os.getpid()}"
    sleeping = ProcessRequest(args=("sleep", mark), background=True)
    await machine.start(sleeping)
    agent = _parent_of(["sleep", mark])

    async def data() -> AsyncIterator[bytes]:
        yield b"data"

    async def listed() -> None:
        async for _ in machine.files.list("/"):
            pass

    async def read() -> None:
        async with machine.files.read("/etc/passwd") as content:
            async for _ in content:
                pass

    monkeypatch.setattr(calls, "ANSWER_SECONDS", 0.3)
    os.kill(agent, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            for call in (
                machine.files.stat("/"),
                machine.files.mkdir("/tmp/never"),
                machine.files.write("/tmp/never", data()),
                machine.files.extract("/tmp", data()),
                listed(),
                read(),
                machine.ports(),
                machine.start(sleeping),
            ):
                with pytest.raises(StreamBroken, match="did not answer"):
                    await call
    finally:
        os.kill(agent, signal.SIGCONT)


def _parent_of(args: list[str]) -> int:
    """Return the parent of the process with these arguments, as this host numbers it."""
    for folder in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_text() == "".join(f"{each}\0" for each in args):
                return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    raise AssertionError(f"no process has the arguments {args}")
