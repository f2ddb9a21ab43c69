"""Writes the pieces that one freezing adds, one behind the other in a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

from belljar.node.frozen.manifest import PIECE_BYTES, Piece
from belljar.system.disk_space import DiskSpace

_ZEROS = bytes(PIECE_BYTES)
_BUFFER_BYTES = 1 << 20
#: How often, in bytes that were written, the disk is asked for room.
_CHECK_BYTES = 16 << 20


class PackWriter:
    """A context manager that owns the file. At the block's end the disk has it."""

    def __init__(self, path: Path, pack: str, disk: DiskSpace | None) -> None:
        self._path = path
        self._pack = pack
        self._disk = disk
        self._offset = 0
        self._next_check = 0
        self._pieces: dict[bytes, Piece] = {}

    def __enter__(self) -> PackWriter:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=_BUFFER_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fdatasync(self._file.fileno())
        finally:
            self._file.close()

    def add(self, data: bytes, known: Piece | None = None) -> Piece | None:
        """Return the piece with these contents; None for zeros. It is written unless it is `known` or was added before.

        Raises DiskFull, OSError.
        """
        if data == _ZEROS[: len(data)]:
            return None
        sha256 = hashlib.sha256(data).digest()
        if known is not None and known.sha256 == sha256:
            return known
        piece = self._pieces.get(sha256)
        if piece is None:
            self._make_room()
            piece = self._pieces[sha256] = Piece(self._pack, self._offset, sha256)
            self._file.write(data)
            self._offset += len(data)
        return piece

    def _make_room(self) -> None:
        if self._offset < self._next_check:
            return
        if self._disk is not None:
            self._disk.require_bytes(_CHECK_BYTES, "a frozen sandbox")
        self._next_check = self._offset + _CHECK_BYTES
