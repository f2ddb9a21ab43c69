"""The output and artifacts of a job on their way to the control plane: output with a cap per stream, artifacts by way
of a file."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import BinaryIO

import structlog

from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey
from belljar.model.errors import DiskFull, HostError
from belljar.model.job import Artifact, LogInfo
from belljar.model.log_stream import LogStream
from belljar.node.guest.wire import Stream
from belljar.node.worker.output_sender import OutputSender
from belljar.node.worker.retry import RetryTimes
from belljar.system.counters import increment
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

STREAMS = {Stream.STDOUT: LogStream.STDOUT, Stream.STDERR: LogStream.STDERR}


class CappedOutput:
    """Sends output up to a cap of bytes per stream; then a marker, and the rest is dropped."""

    def __init__(self, sender: OutputSender, max_bytes: int) -> None:
        self._sender = sender
        self._max_bytes = max_bytes
        self._kept = dict.fromkeys(STREAMS, 0)
        self._truncated = dict.fromkeys(STREAMS, False)

    async def write(self, stream: Stream, data: bytes) -> None:
        if self._truncated[stream]:
            return
        kept = data[: self._max_bytes - self._kept[stream]]
        self._kept[stream] += len(kept)
        if len(kept) < len(data):
            self._truncated[stream] = True
            kept += f"\n[belljar: {stream.name.lower()} was cut off here after {self._max_bytes} bytes]\n".encode()
        await self._sender.write(STREAMS[stream], kept)

    def full(self, stream: Stream) -> bool:
        return self._truncated[stream]

    def info(self) -> LogInfo:
        """Return what was kept, for the job's record."""
        return LogInfo(
            stdout_bytes=self._kept[Stream.STDOUT],
            stderr_bytes=self._kept[Stream.STDERR],
            stdout_truncated=self._truncated[Stream.STDOUT],
            stderr_truncated=self._truncated[Stream.STDERR],
            incomplete=self._sender.failure is not None,
        )


class LinkedArtifacts:
    """Gives artifacts to the control plane, each by way of a file in `folder`, and keeps their list.

    A control plane that refuses is tried again for as long as the caller waits; a full disk is not.
    """

    def __init__(self, link: ControlLink, lease: LeaseKey, folder: Path, retry_times: RetryTimes) -> None:
        self._link = link
        self._lease = lease
        self._path = folder / f"{lease}.artifact"
        self._retry_times = retry_times
        self._file: BinaryIO | None = None
        self._current: Artifact | None = None
        self.kept: list[Artifact] = []

    async def begin(self, path: str, size: int) -> None:
        self._current = Artifact(path=path, size_bytes=size)
        with host_errors(_keeping(path)):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._path.open("wb")

    async def write(self, data: bytes) -> None:
        assert self._file is not None and self._current is not None
        with host_errors(_keeping(self._current.path)):
            self._file.write(data)

    async def end(self) -> None:
        assert self._file is not None and self._current is not None
        with host_errors(_keeping(self._current.path)):
            self._file.close()
        await self._put(len(self.kept))
        self.kept.append(self._current)

    async def _put(self, number: int) -> None:
        backoff = self._retry_times.backoff()
        while True:
            try:
                return await self._link.put_artifact(self._lease, number, self._path)
            except DiskFull:
                raise
            except HostError as error:
                pause_seconds = backoff.next()
                increment("belljar_write_retries", what="artifact")
                log.error("artifact_refused", lease=str(self._lease), error=error.message, retry_seconds=pause_seconds)
                await asyncio.sleep(pause_seconds)

    def close(self) -> None:
        """Remove the file that artifacts pass through."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _keeping(path: str) -> str:
    return f"keep the artifact {path[:80]!r}"
