"""Passes a job's output on to descriptors: a terminal, a pipe, a file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable, Iterator

from belljar.model.errors import DiskFull, HostError, is_disk_full
from belljar.model.job import LogInfo
from belljar.node.guest.wire import Stream

_POLL_MS = 200
_MAX_BYTES = 1 << 20


class PassthroughOutput:
    """Passes output on as it comes. Once the reader of a stream has gone, calls `on_closed` and drops the rest."""

    def __init__(self, stdout: int, stderr: int, stop: asyncio.Event, on_closed: Callable[[], None]) -> None:
        """`stop` is set when the job is being ended: output that the reader does not take is dropped then."""
        self._files = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
        self._stop = stop
        self._on_closed = on_closed
        self._closed: set[Stream] = set()
        self.sent = dict.fromkeys(self._files, 0)

    async def write(self, stream: Stream, data: bytes) -> None:
        if stream in self._closed:
            return
        try:
            # In a thread: the reader of a pipe may be slow, and the machine must be watched meanwhile.
            await asyncio.to_thread(write_all, self._files[stream], data, self._stop.is_set)
            self.sent[stream] += len(data)
        except BrokenPipeError:
            self._closed.add(stream)
            self._on_closed()
        except OSError as error:
            raise write_error(error) from error

    def full(self, stream: Stream) -> bool:
        return stream in self._closed

    def info(self) -> LogInfo:
        """Return how much was passed on, for the job's record."""
        return LogInfo(stdout_bytes=self.sent[Stream.STDOUT], stderr_bytes=self.sent[Stream.STDERR])


def write_error(error: OSError) -> HostError:
    """Return the error for output that cannot be written, with what to do."""
    if is_disk_full(error):
        return DiskFull("no room left where the output is written to; free some space")
    return HostError(f"cannot write the output: {error.strerror}")


def write_all(file: int, data: bytes, stopped: Callable[[], bool]) -> None:
    """Write all of the data. Blocks while the reader takes none of it, until `stopped` returns true.

    Raises OSError; BrokenPipeError when the reader has gone, or takes nothing when the job is stopped.
    """
    # A pipe that is writable for poll(2) takes so many bytes without blocking.
    max_bytes = len(data) if stat.S_ISREG(os.fstat(file).st_mode) else select.PIPE_BUF
    with _unblocked(file) as own:
        descriptor, max_bytes = (file, max_bytes) if own is None else (own, _MAX_BYTES)
        poller = select.poll()
        poller.register(descriptor, select.POLLOUT)
        view = memoryview(data)
        ready = own is not None
        while view:
            while not ready and not poller.poll(_POLL_MS):
                if stopped():
                    raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone")
            try:
                view = view[os.write(descriptor, view[:max_bytes]) :]
            except BlockingIOError:
                ready = False
            else:
                ready = own is not None


@contextlib.contextmanager
def _unblocked(file: int) -> Iterator[int | None]:
    """Yield a descriptor of the same pipe that does not block; None for a file that is not a pipe of this user.

    Other programs share the open file, and O_NONBLOCK with it: so the pipe is opened again.
    """
    if not stat.S_ISFIFO(os.fstat(file).st_mode):
        yield None
        return
    try:
        own = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone") from None
        yield None
        return
    try:
        yield own
    finally:
        os.close(own)
