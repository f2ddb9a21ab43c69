"""Output that is kept for its readers: whole for a foreground command, the newest for a background one."""

from __future__ import annotations

import asyncio

import pytest

from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessOutput
from belljar.node.sandboxes.kept_output import KeptOutput

OUT, ERR = LogStream.STDOUT, LogStream.STDERR
EXIT = ProcessExit(exit_code=0, duration_ms=1, cpu_seconds=0, max_memory_mb=1)


async def read_all(output: KeptOutput, **first: int) -> list[ProcessOutput | ProcessExit]:
    offsets = {OUT: first.get("out", 0), ERR: first.get("err", 0)}
    return [each async for each in output.read(offsets)]


async def test_a_late_reader_gets_everything_that_is_kept_and_the_end() -> None:
    output = KeptOutput(waits=True)
    output.add(OUT, b"one")
    output.add(ERR, b"e")
    output.add(OUT, b"two")
    output.finish(EXIT)
    everything = [ProcessOutput(OUT, 0, b"one"), ProcessOutput(ERR, 0, b"e"), ProcessOutput(OUT, 3, b"two"), EXIT]
    assert await read_all(output) == everything
    assert await read_all(output) == everything
    assert await read_all(output, out=4, err=1) == [ProcessOutput(OUT, 4, b"wo"), EXIT]
    assert await output.wait_end() == EXIT


async def test_a_foreground_command_waits_for_its_slowest_reader_and_loses_nothing() -> None:
    output, received = KeptOutput(waits=True, max_bytes=10), bytearray()
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(100):
            output.add(OUT, bytes([number]) * 4)
            written += 1
            await output.wait_room()
        output.finish(EXIT)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.01)
    assert written == 3  # 12 bytes: one piece beyond the bound, kept for the first reader
    fast = asyncio.create_task(read_all(output))
    async for piece in output.read({}):
        if isinstance(piece, ProcessOutput):
            received += piece.data
            assert written * 4 <= len(received) + 10 + 4
            await asyncio.sleep(0)
    await writing
    assert received == b"".join(bytes([number]) * 4 for number in range(100))
    assert len(await fast) == 101


async def test_a_background_command_never_waits_and_a_reader_sees_what_it_missed() -> None:
    output = KeptOutput(waits=False, max_bytes=10)
    for number in range(100):
        output.add(OUT, bytes([number]) * 4)
        await output.wait_room()
    output.finish(EXIT)
    pieces = await read_all(output)
    assert pieces == [ProcessOutput(OUT, 392, bytes([98]) * 4), ProcessOutput(OUT, 396, bytes([99]) * 4), EXIT]


async def test_a_command_that_nobody_reads_any_more_runs_on() -> None:
    output = KeptOutput(waits=True, max_bytes=10)
    output.add(OUT, bytes(20))
    waiting = asyncio.create_task(output.wait_room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    output.stop_waiting()
    async with asyncio.timeout(10):
        await waiting


async def test_output_that_breaks_off_is_no_end() -> None:
    output = KeptOutput(waits=True)
    output.add(OUT, b"half")
    output.break_off("the machine died")
    pieces = output.read({})
    assert await anext(pieces) == ProcessOutput(OUT, 0, b"half")
    with pytest.raises(StreamBroken, match="the machine died"):
        await anext(pieces)
    with pytest.raises(StreamBroken):
        await output.wait_end()


async def test_output_of_single_bytes_takes_little_memory() -> None:
    """A piece takes a hundred bytes beside its own."""
    background = KeptOutput(waits=False, max_bytes=32_768)
    for number in range(100_000):
        background.add(OUT, bytes([number % 250]))
    background.finish(EXIT)
    pieces = await read_all(background)
    kept = b"".join(each.data for each in pieces if isinstance(each, ProcessOutput))
    assert len(pieces) < 20 and len(kept) > 32_768 - 4096
    assert kept == bytes(number % 250 for number in range(100_000 - len(kept), 100_000))
    # A reader that keeps up gets each byte at once: then their number is bounded.
    read, foreground = bytearray(), KeptOutput(waits=True, max_bytes=32_768)

    async def follow() -> None:
        async for piece in foreground.read({}):
            if isinstance(piece, ProcessOutput):
                read.extend(piece.data)

    following = asyncio.create_task(follow())
    for _ in range(5000):
        foreground.add(OUT, b"x")
        await asyncio.sleep(0)
    foreground.finish(EXIT)
    await following
    assert len(read) == 5000 and len(await read_all(foreground)) < 1200
