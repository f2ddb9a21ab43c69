"""Sends an attempt's output to the control plane: in order, put together, and again after a failure.

What is not acknowledged yet is bounded: a script that prints faster than the control plane takes it is slowed down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import structlog

from belljar.link.errors import LeaseLost, OutputGap, OutputRefused
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey
from belljar.link.output import MAX_PIECE_BYTES, OutputPiece
from belljar.model.errors import BelljarError, HostError
from belljar.model.log_stream import LogStream
from belljar.node.worker.retry import RetryTimes
from belljar.system.background import report_failure
from belljar.system.counters import increment

log = structlog.get_logger()

#: Small writes are put together for this long.
_COALESCE_SECONDS = 0.01
#: So much is sent at once, without waiting for more.
_SEND_BYTES = 64 * 1024
#: A script waits while more than this is not acknowledged.
_MAX_UNACKNOWLEDGED_BYTES = MAX_PIECE_BYTES
#: A call keeps the order between streams for so many changes from one stream to the other.
_MAX_PIECES = 64


class OutputSender:
    """Sends the output of one attempt. `open` it first, `drain` it at the end, `close` it always."""

    def __init__(
        self, link: ControlLink, lease: LeaseKey, retry_times: RetryTimes, on_lease_lost: Callable[[], None]
    ) -> None:
        """`on_lease_lost` is called when the control plane refuses output because the lease is lost."""
        self._link = link
        self._lease = lease
        self._retry_times = retry_times
        self._on_lease_lost = on_lease_lost
        #: Where the next byte of each stream goes.
        self._offsets: Counter[LogStream] = Counter()
        #: Bytes are copied: a script that prints one at a time must not take more memory than it prints.
        self._unsent: list[tuple[LogStream, bytearray]] = []
        self._unsent_bytes = self._in_flight_bytes = 0
        self._is_draining = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake, self._has_room, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._idle.set()
        #: Why nothing more is sent; the job goes on without the rest of its output.
        self.failure: BelljarError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all output is acknowledged, or given up."""
        return self._idle.is_set()

    async def open(self) -> None:
        """Open the log at the control plane. Raises LeaseLost, HostError."""
        self._offsets = Counter(await self._link.append_output(self._lease, ()))

    def append(self, stream: LogStream, data: bytes) -> None:
        """Add bytes to a stream, to be sent soon. For output that is bounded by itself."""
        if self.failure is not None or not data:
            return
        self._buffer(stream).extend(data)
        self._unsent_bytes += len(data)
        self._idle.clear()
        if self._unsent_bytes + self._in_flight_bytes > _MAX_UNACKNOWLEDGED_BYTES:
            self._has_room.clear()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"output of {self._lease}")
        if self._unsent_bytes >= _SEND_BYTES or self._is_draining:
            self._wake.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self._wake.set)

    async def write(self, stream: LogStream, data: bytes) -> None:
        """Add bytes to a stream, and wait until there is room for more."""
        self.append(stream, data)
        await self._has_room.wait()

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until all output is acknowledged; give up the rest when time is up."""
        self._is_draining = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._fail(HostError(f"the control plane did not take the rest of it within {timeout_seconds:g} s"))

    async def close(self) -> None:
        """Send nothing more."""
        self._cancel_timer()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _buffer(self, stream: LogStream) -> bytearray:
        """Return where the next bytes of the stream go."""
        if self._unsent and self._unsent[-1][0] is stream:
            return self._unsent[-1][1]
        if len(self._unsent) >= _MAX_PIECES:
            for earlier, buffer in reversed(self._unsent):
                if earlier is stream:
                    return buffer
        self._unsent.append((stream, bytearray()))
        return self._unsent[-1][1]

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self) -> list[OutputPiece]:
        """Return what is to be sent now."""
        self._cancel_timer()
        self._wake.clear()
        unsent, self._unsent = self._unsent, []
        self._in_flight_bytes, self._unsent_bytes = self._unsent_bytes, 0
        pieces = []
        for stream, data in unsent:
            for at in range(0, len(data), MAX_PIECE_BYTES):
                piece = bytes(memoryview(data)[at : at + MAX_PIECE_BYTES])
                pieces.append(OutputPiece(stream, self._offsets[stream], piece))
                self._offsets[stream] += len(piece)
        return pieces

    async def _run(self) -> None:
        while self.failure is None:
            await self._wake.wait()
            pieces = self._take()
            if pieces:
                await self._send(pieces)
            self._in_flight_bytes = 0
            self._has_room.set()
            if not self._unsent:
                self._idle.set()

    async def _send(self, pieces: list[OutputPiece]) -> None:
        """Send until it is acknowledged. What an earlier try has brought there is skipped there."""
        backoff = self._retry_times.backoff()
        while self.failure is None:
            try:
                await self._link.append_output(self._lease, pieces)
            except LeaseLost as error:
                self._fail(error)
                self._on_lease_lost()
            except (OutputRefused, OutputGap) as error:
                self._fail(error)
            except (HostError, OSError) as error:
                pause_seconds = backoff.next()
                increment("belljar_write_retries", what="output")
                log.error("output_not_sent", lease=str(self._lease), error=str(error), retry_seconds=pause_seconds)
                await asyncio.sleep(pause_seconds)
            except Exception as error:  # noqa: BLE001 (a bug costs the rest of the log, not the job)
                report_failure("send_output", error, lease=str(self._lease))
                self._fail(HostError("internal error; see the server log"))
            else:
                return

    def _fail(self, error: BelljarError) -> None:
        log.error("output_incomplete", lease=str(self._lease), error=error.message)
        self.failure = error
        self._unsent.clear()
        self._unsent_bytes = 0
        self._has_room.set()
        self._idle.set()
