"""Parts of a machine that is being frozen whose contents are in a file or in memory: `PartSource`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from belljar.node.frozen.manifest import PIECE_BYTES
from belljar.node.machines.disks import data_extents


class BytesPart:
    """A part in memory."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.size = len(data)
        self._data = data

    def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
        """Implement `PartSource.pieces`."""
        for at in range(0, self.size, PIECE_BYTES):
            yield at // PIECE_BYTES, self._data[at : at + PIECE_BYTES]


class FilePart:
    """A part in a file, by a descriptor that stays the caller's. Its holes are skipped."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
        """Implement `PartSource.pieces`; what is unchanged shows by its sha256."""
        for index in data_pieces(self._descriptor, self.size):
            yield index, os.pread(self._descriptor, PIECE_BYTES, index * PIECE_BYTES)


def data_pieces(descriptor: int, size: int) -> Iterator[int]:
    """Yield the indexes of pieces that are no holes, in order. Raises OSError."""
    following = 0
    for start, end in data_extents(descriptor, size):
        first = max(following, start // PIECE_BYTES)
        following = -(-min(end, size) // PIECE_BYTES)
        yield from range(first, following)
