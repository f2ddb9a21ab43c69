"""The log of a job: the output of its streams, in order, as one append-only file of records.

A record is a header of 8 bytes, little-endian (length u32, stream u8, attempt u8, two zero bytes) and its bytes. While
the job runs the file grows in the data folder; when it has ended the file becomes the blob `jobs/<id>/log`. An offset
between two records is a place to resume from, and stays valid when the file moves.

The log holds the output of all attempts at the job, one after the other; each record names its attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from belljar.control.blobs.store import Blobs
from belljar.data_dir import DataDir
from belljar.model.errors import DiskFull, InvalidRequest, host_error
from belljar.model.log_stream import LogStream

HEADER = struct.Struct("<IBB2x")
#: What the header has room for; attempts from there on share a number.
MAX_ATTEMPT = 255
MAX_RECORD = 64 * 1024
#: Small writes of one stream are put together for this long, so that a byte does not cost a record.
COALESCE_SECONDS = 0.01
#: Each change between streams ends a record, so that their order is kept, but for as many records only as these and the
#: bytes pay for: a program may change with every byte, and what reads the log takes time for each record.
FREE_RECORDS = 1000
BYTES_FOR_RECORD = 64
#: Records that are read without letting others run.
RECORDS_AT_ONCE = 128
#: A follower reads at most this often, however often it is woken.
FOLLOW_SECONDS = 0.025
#: How often a follower that sees nothing new yields None.
IDLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    stream: LogStream
    data: bytes
    #: Offset of the next record: what a reader resumes from when it has this one.
    end: int
    #: The attempt whose output it is; 0 in logs of releases that did not note it.
    attempt: int = 0


def log_path(data_dir: Path, job_id: str) -> Path:
    """Return the path of a job's log while the job runs."""
    return DataDir(data_dir).logs / f"{job_id}.log"


def log_blob(job_id: str) -> str:
    """Return the name of the blob that holds the log of a job that has ended."""
    return f"jobs/{job_id}/log"


def _scan(file: int, attempt: int) -> tuple[int, Counter[LogStream]]:
    """Return where the last whole record ends, and how many bytes of each stream that attempt has before it.

    A crash may have left half of a record behind the last whole one.
    """
    size, end, kept = os.fstat(file).st_size, 0, Counter[LogStream]()
    if not size:
        return 0, kept
    with mmap.mmap(file, size, prot=mmap.PROT_READ) as content:
        while end + HEADER.size <= size:
            length, stream, of_attempt = HEADER.unpack_from(content, end)
            if end + HEADER.size + length > size:
                break
            if of_attempt == attempt and stream in iter(LogStream):
                kept[LogStream(stream)] += length
            end += HEADER.size + length
    return end, kept


class LogWriter:
    """Appends to one job's log. A context manager; closing writes out what waits. Needs a running event loop."""

    def __init__(self, path: Path, written: Callable[[], None] = lambda: None, *, attempt: int = 0) -> None:
        """Open the log at `path` for that attempt; `written` is called whenever more can be read.

        Raises DiskFull, HostError.
        """
        self._written = written
        self._attempt = min(attempt, MAX_ATTEMPT)
        self._stream = LogStream.STDOUT
        #: By stream; more than one where records have to be saved.
        self._waiting: dict[LogStream, bytearray] = {}
        self._records = self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        #: The first write that failed; nothing is written after it, and the job goes on without more of its log.
        self.failure: OSError | None = None
        #: Bytes of each stream of this attempt, those that an earlier writer has written among them.
        self.kept: Counter[LogStream] = Counter()
        self._file = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            end, self.kept = _scan(self._file, self._attempt)
            os.ftruncate(self._file, end)
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
            raise host_error(error, "open the job's log") from error

    def append(self, stream: LogStream, data: bytes) -> None:
        """Add bytes to a stream. Writes go to the page cache: a few microseconds, so they do not leave the loop."""
        may_change = self._records < FREE_RECORDS + self._bytes // BYTES_FOR_RECORD
        waiting = len(self._waiting.get(stream, b""))
        if (stream is not self._stream and may_change) or waiting + len(data) > MAX_RECORD:
            self.flush()
        self._stream = stream
        self.kept[stream] += len(data)
        buffer = self._waiting.setdefault(stream, bytearray())
        buffer += data
        self._bytes += len(data)
        if len(buffer) >= MAX_RECORD:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self.flush)

    def flush(self) -> None:
        """Write out what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for stream, buffer in waiting.items():
            view = memoryview(buffer)
            for at in range(0, len(view), MAX_RECORD):
                self._write(stream, view[at : at + MAX_RECORD])
        self._written()

    def _write(self, stream: LogStream, piece: memoryview) -> None:
        if self.failure is not None:
            return
        self._records += 1
        header = HEADER.pack(len(piece), stream, self._attempt)
        start = None
        try:
            start = os.fstat(self._file).st_size
            written = os.writev(self._file, [header, piece])
            if written < len(header) + len(piece):
                rest = (header + piece)[written:]
                while rest:
                    rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.failure = error
            if start is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, start)  # half a record would make the rest unreadable

    def close(self) -> None:
        if self._file < 0:
            return
        self.flush()
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def keep_log(data_dir: Path, blobs: Blobs, job_id: str) -> None:
    """Turn the log of a job that has ended here into its blob. Without a local file there is nothing to do."""
    path = log_path(data_dir, job_id)
    if not path.exists():
        return
    try:
        await blobs.put_file(log_blob(job_id), path)
    except DiskFull:
        return  # it stays where it is and is read from there
    path.unlink(missing_ok=True)


class JobLog:
    """Reads one job's log, wherever it is."""

    def __init__(self, data_dir: Path, blobs: Blobs, job_id: str) -> None:
        self._path = log_path(data_dir, job_id)
        self._blobs = blobs
        self._blob = log_blob(job_id)

    async def read(self, start: int = 0) -> AsyncGenerator[Record, None]:
        """Yield the records from offset `start` to the present end."""
        count = 0
        if self._path.exists():
            async for record in self._read_file(start):
                yield record
                start, count = record.end, count + 1
                if count % RECORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            if self._path.exists():
                return
        async for record in self._read_blob(start):
            yield record
            count += 1
            if count % RECORDS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def follow(
        self,
        ended: Callable[[], Awaitable[bool]],
        wait: Callable[[float], Awaitable[bool]],
        start: int = 0,
    ) -> AsyncGenerator[Record | None, None]:
        """Yield the records from offset `start` on, until `ended` is true and all was read.

        `wait(seconds)` returns when there may be more, or when time is up. None is yielded each time that there was
        nothing new, so that the reader can send a heartbeat or notice that its client left.
        """
        while True:
            last_round = await ended()
            async for record in self.read(start):
                yield record
                start = record.end
            if last_round:
                return
            yield None
            next_read = time.monotonic() + FOLLOW_SECONDS
            if await wait(IDLE_SECONDS):
                await asyncio.sleep(max(0.0, next_read - time.monotonic()))

    async def _read_file(self, start: int) -> AsyncIterator[Record]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(start)
            while True:
                header = file.read(HEADER.size)
                if len(header) < HEADER.size:
                    return
                length, stream, attempt = _parse(header)
                data = file.read(length)
                if len(data) < length:
                    return  # the writer has not finished this record
                start += HEADER.size + length
                yield Record(stream, data, start, attempt)

    async def _read_blob(self, start: int) -> AsyncIterator[Record]:
        if await self._blobs.size(self._blob) is None:
            return
        buffer = bytearray()
        async for chunk in self._blobs.stream(self._blob, start):
            buffer += chunk
            at = 0
            while len(buffer) - at >= HEADER.size:
                length, stream, attempt = _parse(bytes(buffer[at : at + HEADER.size]))
                if len(buffer) - at < HEADER.size + length:
                    break
                data = bytes(buffer[at + HEADER.size : at + HEADER.size + length])
                at += HEADER.size + length
                start += HEADER.size + length
                yield Record(stream, data, start, attempt)
            del buffer[:at]


def _parse(header: bytes) -> tuple[int, LogStream, int]:
    """Return a record's length, stream and attempt.

    Raises InvalidRequest: only a wrong offset of the reader's leads to anything else.
    """
    length, stream, attempt = HEADER.unpack(header)
    if length > MAX_RECORD or stream not in iter(LogStream):
        raise InvalidRequest(
            "the event id is not an event boundary of this log; resume from the id of an event that was received"
        )
    return length, LogStream(stream), attempt
