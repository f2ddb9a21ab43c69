"""Artifacts: files that a command wrote below its working folder, fetched after it ended.

A path from the guest is passed to the sink as it is and never used as a path here.
"""

from __future__ import annotations

from collections.abc import Sequence

from belljar.model.errors import GuestProtocolError
from belljar.node.guest import requests, wire
from belljar.node.guest.frame_stream import WINDOW, FrameStream
from belljar.node.guest.sinks import ArtifactSink
from belljar.node.guest.wire import Stream


async def collect(
    frames: FrameStream, globs: Sequence[str], sink: ArtifactSink, *, max_bytes: int, max_count: int
) -> wire.Collected:
    """Fetch the files that the globs match into `sink`, one after the other.

    Returns how many files were fetched and how many files and folders were skipped: over a limit, unreadable, too deep,
    or with a name that is not UTF-8. Raises MachineError.
    """
    await frames.send(requests.collect([glob.encode() for glob in globs], max_bytes=max_bytes, max_count=max_count))
    await frames.grant(Stream.ARTIFACTS, WINDOW)
    undecodable = received = 0
    async with frames.keep_alive():
        while True:
            message = await frames.receive()
            if isinstance(message, wire.Collected):
                if message.count != received:
                    raise GuestProtocolError(f"guest agent reported {message.count} artifacts after sending {received}")
                return wire.Collected(received - undecodable, message.skipped + undecodable)
            if not isinstance(message, wire.ArtifactStart):
                raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent between artifacts")
            if message.size > max_bytes or received >= max_count:
                raise GuestProtocolError("artifact from guest agent exceeds the requested limits")
            received += 1
            max_bytes -= message.size
            undecodable += not await _receive_artifact(frames, message, sink)


async def _receive_artifact(frames: FrameStream, artifact: wire.ArtifactStart, sink: ArtifactSink) -> bool:
    """Receive one artifact; return False when its path is not UTF-8, in which case the sink gets nothing of it."""
    try:
        path: str | None = artifact.path.decode()
    except UnicodeDecodeError:
        path = None
    if path is not None:
        await sink.begin(path, artifact.size)
    left = artifact.size
    while left > 0:
        message = await frames.receive()
        if not isinstance(message, wire.ArtifactData) or len(message.data) > left:
            raise GuestProtocolError("artifact from guest agent is incomplete or longer than announced")
        left -= len(message.data)
        if path is not None:
            await sink.write(message.data)
        await frames.grant(Stream.ARTIFACTS, len(message.data))
    if path is not None:
        await sink.end()
    return path is not None
