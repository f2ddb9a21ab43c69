"""One attempt's output at the control plane: bounded, in order, and visible to readers once it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from belljar.control.logs.job_logs import JobLogs
from belljar.control.logs.log import LogWriter
from belljar.link.errors import OutputGap, OutputRefused
from belljar.link.output import MAX_PIECE_BYTES, OutputOffsets, OutputPiece
from belljar.model.errors import InvalidRequest, host_error
from belljar.model.job import Job
from belljar.system.counters import increment


class AttemptLog:
    """Writes the pieces of one attempt's output into the job's log. Opened by the first call, closed once."""

    def __init__(self, logs: JobLogs, job: Job, max_stream_bytes: int) -> None:
        self._logs = logs
        self._job = job
        self._max_stream_bytes = max_stream_bytes
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._writer: LogWriter | None = None
        self._closed = False

    async def append(self, pieces: Sequence[OutputPiece]) -> OutputOffsets:
        """Write what is not written yet, and return how far each stream is written.

        Raises OutputGap, OutputRefused, InvalidRequest, HostError.
        """
        writer = await self._open()
        for piece in pieces:
            self._check(writer, piece)
            written = writer.kept[piece.stream]
            new = piece.data if piece.offset == written else piece.data[written - piece.offset :]
            if new:
                writer.append(piece.stream, new)
                increment("belljar_output_bytes", len(new), stream=piece.stream.name.lower())
        writer.flush()
        if writer.failure is not None:
            raise OutputRefused(host_error(writer.failure, "write the job's log").message)
        return dict(writer.kept)

    async def _open(self) -> LogWriter:
        async with self._opening:
            if self._closed:
                raise OutputRefused("the attempt has ended; nothing is added to its log")
            if self._writer is None:
                self._writer = await self._stack.enter_async_context(self._logs.opened(self._job))
            return self._writer

    def _check(self, writer: LogWriter, piece: OutputPiece) -> None:
        written = writer.kept[piece.stream]
        if len(piece.data) > MAX_PIECE_BYTES or piece.offset < 0:
            reason = f"a piece of output has {len(piece.data)} bytes at {piece.offset}; send at most {MAX_PIECE_BYTES}"
            raise InvalidRequest(reason)
        if piece.offset > written:
            reason = f"the {piece.stream.name.lower()} of {self._job.id} is kept up to {written}, not {piece.offset}"
            raise OutputGap(f"{reason}; resume from {written}", acknowledged=written)
        if piece.end > self._max_stream_bytes:
            raise OutputRefused(f"a stream of the job's log holds at most {self._max_stream_bytes} bytes")

    async def close(self) -> bool:
        """Write no more; return whether the log was open."""
        async with self._opening:
            was_open, self._closed = self._writer is not None and not self._closed, True
            await self._stack.aclose()
            return was_open
