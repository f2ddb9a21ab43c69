"""The output of one command, kept within a bound for its readers.

A foreground command waits for its readers: nothing is lost, and without a reader its output is kept for the first one.
A background command never waits: the oldest bytes are dropped, and a reader sees by the offsets what it missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessOutput

#: Bytes of output that are kept of one command.
MAX_KEPT_BYTES = 128 * 1024
#: Pieces of a stream that nobody has read yet become one of at most this size, and of a fraction of what is kept.
_MERGED_BYTES, _MERGED_FRACTION = 4096, 8
#: A piece takes memory beside its bytes: so many are kept, and one more for each of these bytes.
_MIN_PIECES, _BYTES_OF_PIECE = 64, 32


@dataclass(eq=False, slots=True)
class _Reader:
    #: Number of the next piece that it reads, counted from the command's start.
    position: int = 0


class KeptOutput:
    """The newest output of a command, and its end."""

    def __init__(self, *, waits: bool, max_bytes: int = MAX_KEPT_BYTES) -> None:
        """`waits`: whether the command waits for its readers."""
        self.max_bytes = max_bytes
        self._waits = waits
        self._pieces: deque[ProcessOutput] = deque()
        #: Number of the first piece in `_pieces`.
        self._first = 0
        self._kept_bytes = 0
        self._readers: set[_Reader] = set()
        self._changed = asyncio.Event()
        self._end: ProcessExit | None = None
        self._broken: str | None = None
        self._is_suspended = False
        #: Bytes of each stream so far.
        self.written = {LogStream.STDOUT: 0, LogStream.STDERR: 0}

    # --- its writer -------------------------------------------------------------------------------------------------

    def add(self, stream: LogStream, data: bytes) -> None:
        """Keep a piece of output."""
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream is stream and self._may_merge(len(last.data) + len(data)):
            self._pieces[-1] = ProcessOutput(stream, last.offset, last.data + data)
        else:
            self._pieces.append(ProcessOutput(stream, self.written[stream], data))
        self.written[stream] += len(data)
        self._kept_bytes += len(data)
        self._trim()
        self._notify()

    async def wait_room(self) -> None:
        """Wait until there is room for the next piece: at once, unless the command waits for its readers."""
        while self._waits and not self._is_suspended and self._is_full():
            await self._wait()

    def suspend(self) -> None:
        """Take everything that was received without waiting for room: the machine is being frozen."""
        self._is_suspended = True
        self._notify()

    def resume(self) -> None:
        """Wait for room again."""
        self._is_suspended = False

    def finish(self, end: ProcessExit) -> None:
        """Note how the command ended: no more output comes."""
        self._end = end
        self._notify()

    def break_off(self, reason: str) -> None:
        """Note that the output broke off: what follows, and the command's end, are not known."""
        self._broken = reason
        self._notify()

    def stop_waiting(self) -> None:
        """From now on drop the oldest output rather than wait for readers."""
        self._waits = False
        self._trim()
        self._notify()

    def pieces(self) -> tuple[ProcessOutput, ...]:
        """Return what is kept now."""
        return tuple(self._pieces)

    def restore(self, pieces: Iterable[ProcessOutput], written: dict[LogStream, int]) -> None:
        """Begin with what was kept before the machine was frozen."""
        self._pieces.extend(pieces)
        self._kept_bytes = sum(len(piece.data) for piece in self._pieces)
        self.written = written

    # --- its readers ------------------------------------------------------------------------------------------------

    async def read(self, first: dict[LogStream, int]) -> AsyncGenerator[ProcessOutput | ProcessExit, None]:
        """Yield what is kept of each stream from its offset in `first` on, then what comes, and the end at last.

        Raises StreamBroken when the output broke off.
        """
        reader = _Reader(self._first)
        self._readers.add(reader)
        try:
            while True:
                while (piece := self._next(reader)) is not None:
                    if (shown := _behind(piece, first.get(piece.stream, 0))) is not None:
                        yield shown
                    self._trim()
                    self._notify()
                if self._end is not None:
                    yield self._end
                    return
                if self._broken is not None:
                    raise StreamBroken(f"the command's output broke off: {self._broken}")
                await self._wait()
        finally:
            self._readers.discard(reader)
            self._notify()

    @property
    def has_readers(self) -> bool:
        """Whether somebody reads it now."""
        return bool(self._readers)

    async def wait_end(self) -> ProcessExit:
        """Return how the command ended. Raises StreamBroken."""
        while self._end is None:
            if self._broken is not None:
                raise StreamBroken(f"the command's end is not known: {self._broken}")
            await self._wait()
        return self._end

    def _next(self, reader: _Reader) -> ProcessOutput | None:
        """Return the reader's next piece; None when it has read all. Behind what was dropped it goes on."""
        reader.position = max(reader.position, self._first)
        if reader.position >= self._first + len(self._pieces):
            return None
        piece = self._pieces[reader.position - self._first]
        reader.position += 1
        return piece

    def _trim(self) -> None:
        """Drop the oldest pieces beyond the bound. A command that waits loses only what every reader has read."""
        while self._pieces and self._is_full() and self._may_drop_first():
            self._kept_bytes -= len(self._pieces.popleft().data)
            self._first += 1

    def _may_merge(self, size: int) -> bool:
        last = self._first + len(self._pieces) - 1
        is_small = size <= min(_MERGED_BYTES, self.max_bytes // _MERGED_FRACTION)
        return is_small and all(reader.position <= last for reader in self._readers)

    def _is_full(self) -> bool:
        if len(self._pieces) > _MIN_PIECES + self.max_bytes // _BYTES_OF_PIECE:
            return True
        return self._kept_bytes >= self.max_bytes if self._waits else self._kept_bytes > self.max_bytes

    def _may_drop_first(self) -> bool:
        return not self._waits or (bool(self._readers) and self._all_read_first())

    def _all_read_first(self) -> bool:
        return all(reader.position > self._first for reader in self._readers)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()


def _behind(piece: ProcessOutput, offset: int) -> ProcessOutput | None:
    """Return the part of a piece at and behind an offset of its stream; None when there is none."""
    skipped = offset - piece.offset
    if skipped <= 0:
        return piece
    if skipped >= len(piece.data):
        return None
    return ProcessOutput(piece.stream, offset, piece.data[skipped:])
