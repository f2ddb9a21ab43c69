"""Collecting artifacts from folders that are made to be awkward: it ends, and counts what it skipped."""

from __future__ import annotations

import os
from pathlib import Path

from belljar.node.guest import requests, wire
from belljar.node.guest.wire import FrameType, Stream
from support.conversation import Collector, ConnectAgent, hang_up

MAX_DEPTH = 128


def nest(folder: Path, depth: int) -> None:
    """Folders in folders, with a file in each."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth + 1):
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


async def test_globs_full_of_stars_over_deep_folders_end(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        nest(agent.folder, 47)
        await agent.run("true")
        sink = Collector()
        collected = await agent.connection.collect(["**/" * 40 + "zzz"], sink, max_bytes=1 << 20, max_count=1000)
    assert collected == wire.Collected(0, 0)


async def test_what_lies_too_deep_is_counted_as_skipped(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        nest(agent.folder, MAX_DEPTH + 10)
        await agent.run("true")
        everything = await agent.connection.collect(["**"], Collector(), max_bytes=1 << 20, max_count=1000)
        elsewhere = await agent.connection.collect(["file", "e/**"], Collector(), max_bytes=1 << 20, max_count=1000)
    assert everything == wire.Collected(MAX_DEPTH + 1, 1)  # the first folder that was not entered
    assert elsewhere == wire.Collected(1, 0)  # no glob could have matched there


async def test_paths_that_are_too_long_are_counted_as_skipped(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        folder = agent.folder
        for _ in range(4):
            folder = folder / ("x" * 250)
        folder.mkdir(parents=True)
        (folder / ("f" * 20)).touch()
        (folder / ("f" * 21)).touch()
        await agent.run("true")
        sink = Collector()
        collected = await agent.connection.collect(["**"], sink, max_bytes=1 << 20, max_count=1000)
    assert collected == wire.Collected(1, 1)
    assert [len(path) for path in sink.files] == [wire.MAX_PATH_BYTES]


async def test_a_glob_with_an_exclamation_mark_excludes(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        for name in ("a.txt", "b.log", "__pycache__/x", "deep/__pycache__/y/z", "deep/c.txt", "!odd"):
            path = agent.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        await agent.run("true")
        sink = Collector()
        globs = ["**", "!**/__pycache__", "!*.log"]
        collected = await agent.connection.collect(globs, sink, max_bytes=1 << 20, max_count=1000)
        assert set(sink.files) == {"a.txt", "deep/c.txt", "!odd"}
        assert collected == wire.Collected(3, 0)
        sink = Collector()
        await agent.connection.collect(["[!]odd", "\\!odd"], sink, max_bytes=1 << 20, max_count=1000)
        assert set(sink.files) == {"!odd"}


async def test_thousands_of_files_come_with_the_host_answered_meanwhile(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        for number in range(3000):
            (agent.folder / f"{number}").write_bytes(b"x")
        await agent.run("true")
        await agent.connection._frames.send(requests.collect([b"**"], max_bytes=1 << 20, max_count=5000))
        received = []
        await agent.connection._frames.grant(Stream.ARTIFACTS, 100)
        while received.count(FrameType.ARTIFACT_DATA) < 100:  # now it waits for credit
            length, frame_type, _, _ = wire.parse_header(await agent.connection._frames._reader.readexactly(8))
            await agent.connection._frames._reader.readexactly(length)
            received.append(frame_type)
        await agent.connection._frames.send(wire.frame(FrameType.SIGNAL, b"\x0f") + wire.frame(FrameType.PING))
        while received[-1] is not FrameType.PONG:
            length, frame_type, _, _ = wire.parse_header(await agent.connection._frames._reader.readexactly(8))
            await agent.connection._frames._reader.readexactly(length)
            received.append(frame_type)
        assert FrameType.COLLECTED not in received


async def test_an_agent_whose_host_hangs_up_while_it_collects_ends(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        nest(agent.folder, 20)
        (agent.folder / "large").write_bytes(bytes(1 << 20))
        await agent.run("true")
        await agent.connection._frames.send(requests.collect([b"**"], max_bytes=1 << 30, max_count=5000))
        hang_up(agent.connection)  # the fixture waits for the agent's own end
