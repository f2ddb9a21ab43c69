"""Decompress a layer while it is read; count, hash and limit its bytes, so that a decompression bomb ends early."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from belljar.model.errors import InvalidImage

_CHUNK = 256 * 1024
#: A layer may decompress to this size at any ratio; the ratio limits larger ones. Ordinary layers decompress to two to
#: five times their size, a file of zeros in gzip to a thousand times.
_RATIO_FLOOR_BYTES = 64 * 1024 * 1024
_MAX_RATIO = 100


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes: ...


class ByteBudget:
    """Limits the decompressed bytes of all layers together."""

    def __init__(self, max_bytes: int) -> None:
        self.left_bytes = max_bytes
        self._max_bytes = max_bytes

    def count(self, size_bytes: int) -> None:
        """Count bytes. Raises InvalidImage over the limit."""
        self.left_bytes -= size_bytes
        if self.left_bytes < 0:
            limit_mb = self._max_bytes // (1024 * 1024)
            raise InvalidImage(f"the image unpacks to over {limit_mb} MB; raise the setting max_image_mb")


class LayerStream:
    """The tar archive in a layer. Reading raises InvalidImage for damaged layers and decompression bombs."""

    def __init__(self, source: Readable, packed_bytes: int, budget: ByteBudget) -> None:
        self._source = source
        self._max_bytes = max(_RATIO_FLOOR_BYTES, packed_bytes * _MAX_RATIO)
        self._budget = budget
        self._hash = hashlib.sha256()
        self._count = 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer at the end only. Raises InvalidImage."""
        parts = []
        while size > 0:
            data = self._source.read(size)
            if not data:
                break
            self._count += len(data)
            if self._count > self._max_bytes:
                raise InvalidImage(f"a layer has a compression ratio over {_MAX_RATIO} (possible decompression bomb)")
            self._budget.count(len(data))
            self._hash.update(data)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def finish(self) -> str:
        """Read the rest, and return the sha256 of the whole archive. Raises InvalidImage."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


@contextmanager
def open_layer(path: Path, budget: ByteBudget) -> Iterator[LayerStream]:
    """Open a layer's blob, compressed with gzip, zstd or not at all, as its first bytes show. Raises InvalidImage."""
    packed_bytes = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            yield LayerStream(_Gzip(file), packed_bytes, budget)
        elif magic == b"\x28\xb5\x2f\xfd":
            with _zstd(file) as source:
                yield LayerStream(source, packed_bytes, budget)
        else:
            yield LayerStream(file, packed_bytes, budget)


@contextmanager
def _zstd(file: BinaryIO) -> Iterator[Readable]:
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # the descriptor itself: `file` has read ahead
    process = subprocess.Popen(["zstd", "-dcq", "--memory=256MB"], stdin=file, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout
        process.stdout.close()
        if process.wait(timeout=60) != 0:
            raise InvalidImage("a layer is damaged: zstd cannot decompress it")
    finally:
        process.kill()
        process.wait()


class _Gzip:
    """Decompresses gzip, also with several members, and never more than requested."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._inflate.eof:
                self._pending = self._inflate.unused_data or self._file.read(_CHUNK)
                if not self._pending.strip(b"\0"):
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)
            elif not self._pending:
                self._pending = self._file.read(_CHUNK)
                if not self._pending:
                    raise InvalidImage("a layer is damaged: unexpected end of file")
            try:
                data = self._inflate.decompress(self._pending, size)
            except zlib.error as error:
                raise InvalidImage(f"a layer is damaged: {error}") from None
            self._pending = self._inflate.unconsumed_tail
            if data:
                return data
