"""Where a machine's output and artifacts go."""

from __future__ import annotations

from typing import Protocol

from belljar.node.guest.wire import Stream


class OutputSink(Protocol):
    """A destination for a job's output."""

    async def write(self, stream: Stream, data: bytes) -> None:
        """Take the next bytes of a stream; the guest's writer blocks while this waits."""
        ...

    def full(self, stream: Stream) -> bool:
        """Return whether this stream takes no more bytes; the guest then discards them itself."""
        ...


class ArtifactSink(Protocol):
    """A destination for artifacts, which come one after the other."""

    async def begin(self, path: str, size: int) -> None:
        """Start an artifact of `size` bytes. The path comes from the guest and is not to be trusted."""
        ...

    async def write(self, data: bytes) -> None:
        """Take the artifact's next bytes."""
        ...

    async def end(self) -> None:
        """Finish the artifact; all its bytes were written."""
        ...
