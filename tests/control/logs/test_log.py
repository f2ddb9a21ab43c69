"""The log of a job: written while it runs, followed, and kept as a blob."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.jobs.changes import Changes
from belljar.control.logs.log import (
    BYTES_FOR_RECORD,
    FREE_RECORDS,
    HEADER,
    MAX_RECORD,
    RECORDS_AT_ONCE,
    JobLog,
    LogWriter,
    Record,
    keep_log,
    log_path,
)
from belljar.model.log_stream import LogStream
from belljar.settings import Settings
from support.examples import examples


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(Settings(data_dir=tmp_path))


async def records(reader: AsyncIterator[Record]) -> list[tuple[LogStream, bytes]]:
    return [(record.stream, record.data) async for record in reader]


async def test_streams_are_read_back_in_order(tmp_path: Path, blobs: Blobs) -> None:
    with LogWriter(log_path(tmp_path, "j")) as log:
        log.append(LogStream.STDOUT, b"one ")
        log.append(LogStream.STDOUT, b"two")
        log.append(LogStream.STDERR, b"oh")
        log.append(LogStream.STDOUT, b"three")
    expected = [(LogStream.STDOUT, b"one two"), (LogStream.STDERR, b"oh"), (LogStream.STDOUT, b"three")]
    assert await records(JobLog(tmp_path, blobs, "j").read()) == expected
    await keep_log(tmp_path, blobs, "j")
    assert not log_path(tmp_path, "j").exists()
    assert await records(JobLog(tmp_path, blobs, "j").read()) == expected


async def test_a_reader_resumes_where_it_stopped_also_after_the_log_moved(tmp_path: Path, blobs: Blobs) -> None:
    with LogWriter(log_path(tmp_path, "j")) as log:
        log.append(LogStream.STDOUT, b"a")
        log.append(LogStream.STDERR, b"b")
    first = await anext(JobLog(tmp_path, blobs, "j").read())
    assert await records(JobLog(tmp_path, blobs, "j").read(first.end)) == [(LogStream.STDERR, b"b")]
    await keep_log(tmp_path, blobs, "j")
    assert await records(JobLog(tmp_path, blobs, "j").read(first.end)) == [(LogStream.STDERR, b"b")]


async def test_a_follower_sees_what_comes_and_stops_at_the_end(tmp_path: Path, blobs: Blobs) -> None:
    seen, ended = bytearray(), False
    changes = Changes()

    async def has_ended() -> bool:
        return ended

    async def follow() -> None:
        with changes.watching("j") as watch:
            async for record in JobLog(tmp_path, blobs, "j").follow(has_ended, watch.wait):
                if record is not None:
                    seen.extend(record.data)

    following = asyncio.create_task(follow())
    with LogWriter(log_path(tmp_path, "j"), lambda: changes.notify_log("j")) as log:
        log.append(LogStream.STDOUT, b"early ")
        async with asyncio.timeout(5):
            while seen != b"early ":
                await asyncio.sleep(0.01)
        log.append(LogStream.STDOUT, b"late")
    await keep_log(tmp_path, blobs, "j")
    ended = True
    changes.notify("j")
    async with asyncio.timeout(5):
        await following
    assert seen == b"early late"


async def test_a_job_without_a_log_reads_as_empty(tmp_path: Path, blobs: Blobs) -> None:
    assert await records(JobLog(tmp_path, blobs, "never").read()) == []


async def test_half_a_record_left_by_a_crash_is_cut_off_and_the_next_attempt_appends(
    tmp_path: Path, blobs: Blobs
) -> None:
    with LogWriter(log_path(tmp_path, "j")) as log:
        log.append(LogStream.STDOUT, b"whole")
    with log_path(tmp_path, "j").open("ab") as file:
        file.write(b"\x00\x01\x00\x00\x01\0\0\0half")
    assert await records(JobLog(tmp_path, blobs, "j").read()) == [(LogStream.STDOUT, b"whole")]
    with LogWriter(log_path(tmp_path, "j")) as log:
        log.append(LogStream.STDERR, b"again")
    expected = [(LogStream.STDOUT, b"whole"), (LogStream.STDERR, b"again")]
    assert await records(JobLog(tmp_path, blobs, "j").read()) == expected


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(LogStream), st.integers(0, 3 * MAX_RECORD)), max_size=8))
def test_every_byte_of_every_stream_comes_back(tmp_path: Path, pieces: list[tuple[LogStream, int]]) -> None:
    async def scenario() -> None:
        path = log_path(tmp_path, "j")
        path.unlink(missing_ok=True)
        blobs = open_blobs(Settings(data_dir=tmp_path))
        written = {stream: bytearray() for stream in LogStream}
        with LogWriter(path) as log:
            for stream, size in pieces:
                data = os.urandom(size)
                written[stream] += data
                log.append(stream, data)
        read = {stream: bytearray() for stream in LogStream}
        async for record in JobLog(tmp_path, blobs, "j").read():
            assert 0 < len(record.data) <= MAX_RECORD
            read[record.stream] += record.data
        assert read == written

    asyncio.run(scenario())


async def test_a_program_that_changes_streams_with_every_byte_makes_few_records(tmp_path: Path, blobs: Blobs) -> None:
    count = 50_000
    with LogWriter(log_path(tmp_path, "j")) as log:
        for _ in range(count):
            log.append(LogStream.STDOUT, b"o")
            log.append(LogStream.STDERR, b"e")
    found = await records(JobLog(tmp_path, blobs, "j").read())
    assert found[:4] == [(LogStream.STDOUT, b"o"), (LogStream.STDERR, b"e")] * 2
    assert len(found) < FREE_RECORDS + 2 * count // BYTES_FOR_RECORD + 100
    for stream, byte in ((LogStream.STDOUT, b"o"), (LogStream.STDERR, b"e")):
        assert b"".join(data for each, data in found if each is stream) == byte * count


@pytest.mark.parametrize("kept", [False, True])
async def test_a_log_of_many_records_is_read_without_keeping_others_waiting(
    tmp_path: Path, blobs: Blobs, kept: bool
) -> None:
    path = log_path(tmp_path, "j")
    path.parent.mkdir(parents=True)
    path.write_bytes((HEADER.pack(1, LogStream.STDOUT, 1) + b"o") * 10 * RECORDS_AT_ONCE)
    if kept:
        await keep_log(tmp_path, blobs, "j")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    last, run, longest = turns, 0, 0
    async for _ in JobLog(tmp_path, blobs, "j").read():
        run = run + 1 if turns == last else 0
        last, longest = turns, max(longest, run)
    task.cancel()
    assert longest <= RECORDS_AT_ONCE
