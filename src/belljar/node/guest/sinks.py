"""Who takes what comes out of a machine."""

from __future__ import annotations

from typing import Protocol

from belljar.node.guest.wire import Stream


class OutputSink(Protocol):
    """Takes the job's output as it comes; waiting in `write` slows the guest."""

    async def write(self, stream: Stream, data: bytes) -> None: ...

    def full(self, stream: Stream) -> bool:
        """Whether nothing more of this stream is wanted; the guest then drops it itself."""
        ...


class ArtifactSink(Protocol):
    """Takes artifacts, one after the other."""

    async def begin(self, path: str, size: int) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...
