"""Collecting artifacts from folders that are made to be awkward: it ends, and tells what it left out."""

from __future__ import annotations

import os
from pathlib import Path

from belljar.node.guest import wire
from belljar.node.guest.wire import Kind, Stream
from support.conversation import Collector, Converse, hang_up

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


async def test_globs_full_of_stars_over_deep_folders_end(converse: Converse) -> None:
    async with converse() as talk:
        nest(talk.folder, 47)
        await talk.run("true")
        sink = Collector()
        collected = await talk.connection.collect(["**/" * 40 + "zzz"], sink, max_bytes=1 << 20, max_count=1000)
    assert collected == wire.Collected(0, 0)


async def test_what_lies_too_deep_is_counted_as_left_out(converse: Converse) -> None:
    async with converse() as talk:
        nest(talk.folder, MAX_DEPTH + 10)
        await talk.run("true")
        everything = await talk.connection.collect(["**"], Collector(), max_bytes=1 << 20, max_count=1000)
        elsewhere = await talk.connection.collect(["file", "e/**"], Collector(), max_bytes=1 << 20, max_count=1000)
    assert everything == wire.Collected(MAX_DEPTH + 1, 1)  # the first folder that was not gone into
    assert elsewhere == wire.Collected(1, 0)  # no glob could have matched there


async def test_paths_that_are_too_long_are_counted_as_left_out(converse: Converse) -> None:
    async with converse() as talk:
        folder = talk.folder
        for _ in range(4):
            folder = folder / ("x" * 250)
        folder.mkdir(parents=True)
        (folder / ("f" * 20)).touch()
        (folder / ("f" * 21)).touch()
        await talk.run("true")
        sink = Collector()
        collected = await talk.connection.collect(["**"], sink, max_bytes=1 << 20, max_count=1000)
    assert collected == wire.Collected(1, 1)
    assert [len(path) for path in sink.files] == [wire.MAX_PATH_BYTES]


async def test_a_glob_with_an_exclamation_mark_takes_out(converse: Converse) -> None:
    async with converse() as talk:
        for name in ("a.txt", "b.log", "__pycache__/x", "deep/__pycache__/y/z", "deep/c.txt", "!odd"):
            path = talk.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        await talk.run("true")
        sink = Collector()
        globs = ["**", "!**/__pycache__", "!*.log"]
        collected = await talk.connection.collect(globs, sink, max_bytes=1 << 20, max_count=1000)
        assert set(sink.files) == {"a.txt", "deep/c.txt", "!odd"}
        assert collected == wire.Collected(3, 0)
        sink = Collector()
        await talk.connection.collect(["[!]odd", "\\!odd"], sink, max_bytes=1 << 20, max_count=1000)
        assert set(sink.files) == {"!odd"}


async def test_thousands_of_files_come_with_the_host_answered_meanwhile(converse: Converse) -> None:
    async with converse() as talk:
        for number in range(3000):
            (talk.folder / f"{number}").write_bytes(b"x")
        await talk.run("true")
        await talk.connection._send(wire.collect([b"**"], max_bytes=1 << 20, max_count=5000))
        kinds = []
        await talk.connection._grant(Stream.ARTIFACTS, 100)
        while kinds.count(Kind.ARTIFACT_DATA) < 100:  # now it waits for credit
            length, kind, _ = wire.parse_header(await talk.connection._reader.readexactly(8))
            await talk.connection._reader.readexactly(length)
            kinds.append(kind)
        await talk.connection._send(wire.frame(Kind.SIGNAL, b"\x0f") + wire.frame(Kind.PING))
        while kinds[-1] is not Kind.PONG:
            length, kind, _ = wire.parse_header(await talk.connection._reader.readexactly(8))
            await talk.connection._reader.readexactly(length)
            kinds.append(kind)
        assert Kind.COLLECTED not in kinds


async def test_an_agent_whose_host_hangs_up_while_it_collects_ends(converse: Converse) -> None:
    async with converse() as talk:
        nest(talk.folder, 20)
        (talk.folder / "large").write_bytes(bytes(1 << 20))
        await talk.run("true")
        await talk.connection._send(wire.collect([b"**"], max_bytes=1 << 30, max_count=5000))
        hang_up(talk.connection)  # the fixture waits for the agent's own end
