"""The output of commands as callers get it: whole in a result, or as events."""

from __future__ import annotations

import base64
import codecs
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessInfo, ProcessOutput

_STREAMS = (LogStream.STDOUT, LogStream.STDERR)


@dataclass(slots=True)
class Collected:
    """The output of a command, each stream up to a limit, and how it ended."""

    max_bytes: int
    data: dict[LogStream, bytearray] = field(default_factory=lambda: {stream: bytearray() for stream in _STREAMS})
    truncated: set[LogStream] = field(default_factory=set)
    exit: ProcessExit | None = None

    def add(self, piece: ProcessOutput) -> None:
        """Keep what fits. A gap, which is what the node did not keep, counts as truncated."""
        kept = self.data[piece.stream]
        if piece.offset != len(kept):
            self.truncated.add(piece.stream)
        room = self.max_bytes - len(kept)
        if len(piece.data) > room:
            self.truncated.add(piece.stream)
        kept += piece.data[: max(0, room)]

    def public(self, encoding: str) -> dict[str, Any]:
        """Return the fields of a result."""
        fields: dict[str, Any] = {"encoding": encoding}
        for stream in _STREAMS:
            name = stream.name.lower()
            data = bytes(self.data[stream])
            fields[name] = data.decode(errors="replace") if encoding == "text" else base64.b64encode(data).decode()
            fields[f"{name}_truncated"] = stream in self.truncated
        return fields


async def collect(output: AsyncIterator[ProcessOutput | ProcessExit], max_bytes: int) -> Collected:
    """Read a command's output to its end. Raises StreamBroken when it breaks off."""
    collected = Collected(max_bytes)
    async for piece in output:
        if isinstance(piece, ProcessExit):
            collected.exit = piece
        else:
            collected.add(piece)
    if collected.exit is None:
        raise StreamBroken("the output broke off before the command ended; read the process to see how it ended")
    return collected


class OutputEvents:
    """Makes events of a command's output: text is cut between characters only."""

    def __init__(self, encoding: str) -> None:
        self._is_text = encoding == "text"
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _STREAMS}

    def of(self, piece: ProcessOutput) -> tuple[str, dict[str, Any]]:
        """Return the name of the event and its data. `offset` is that of the first byte."""
        name = piece.stream.name.lower()
        if self._is_text:
            return name, {"text": self._decoders[piece.stream].decode(piece.data), "offset": piece.offset}
        return name, {"data": base64.b64encode(piece.data).decode(), "offset": piece.offset}

    def rest(self) -> list[tuple[str, dict[str, Any]]]:
        """Return events for what is left of characters that never became whole."""
        left = [(stream.name.lower(), decoder.decode(b"", final=True)) for stream, decoder in self._decoders.items()]
        return [(name, {"text": text}) for name, text in left if text]


def public_exit(exit_: ProcessExit | None) -> dict[str, Any]:
    """Return how a command ended, as the API shows it; None and false while it runs."""
    if exit_ is None:
        return {**dict.fromkeys(ProcessExit.model_fields), "timed_out": False}
    return exit_.model_dump(mode="json")


def public_process(process: ProcessInfo) -> dict[str, Any]:
    """Return a command as the API shows it."""
    fields = process.model_dump(mode="json", exclude={"exit"})
    status = "running" if process.exit is None else "exited"
    return {**fields, "status": status, **public_exit(process.exit)}
