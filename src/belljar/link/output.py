"""Pieces of an attempt's output, and how far the control plane has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from belljar.model.log_stream import LogStream

#: The largest piece that is taken.
MAX_PIECE_BYTES = 1024 * 1024

#: By stream, the offset behind the last byte that was acknowledged; a stream without any is not in it.
OutputOffsets = Mapping[LogStream, int]


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """Bytes of one stream of an attempt; `offset` counts the bytes of that stream and attempt before them."""

    stream: LogStream
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset behind the piece."""
        return self.offset + len(self.data)
