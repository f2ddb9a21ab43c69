"""A layer's bytes, decompressed as they are read: counted, hashed and bounded, so that a bomb ends early."""

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
#: A layer may unpack to this much whatever its packed size is; beyond it the ratio counts. Ordinary layers unpack to
#: two to five times their size, a file of zeros under gzip to a thousand times.
_FREE_BYTES = 64 * 1024 * 1024
_MAX_RATIO = 100


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Budget:
    """What all layers of an image may unpack to together."""

    def __init__(self, max_bytes: int) -> None:
        self.left = max_bytes
        self._max_bytes = max_bytes

    def take(self, size: int) -> None:
        """Raises InvalidImage when that is too much."""
        self.left -= size
        if self.left < 0:
            megabytes = self._max_bytes // (1024 * 1024)
            raise InvalidImage(f"the image unpacks to more than {megabytes} MB; the setting max_image_mb allows more")


class LayerStream:
    """The tar archive in a layer. Reading raises InvalidImage for damage and for bombs."""

    def __init__(self, source: Readable, packed_bytes: int, budget: Budget) -> None:
        self._source = source
        self._most = max(_FREE_BYTES, packed_bytes * _MAX_RATIO)
        self._budget = budget
        self._hash = hashlib.sha256()
        self._count = 0

    def read(self, size: int, /) -> bytes:
        parts = []
        while size > 0:
            data = self._source.read(size)
            if not data:
                break
            self._count += len(data)
            if self._count > self._most:
                raise InvalidImage(f"a layer unpacks to over {_MAX_RATIO} times its size; that is no ordinary layer")
            self._budget.take(len(data))
            self._hash.update(data)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def finish(self) -> str:
        """Read what is left; returns the sha256 of the whole."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


@contextmanager
def open_layer(path: Path, budget: Budget) -> Iterator[LayerStream]:
    """The decompressed stream of a layer's blob: gzip, zstd, or no compression; told by its first bytes."""
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
            raise InvalidImage("a layer is damaged: zstd cannot unpack it")
    finally:
        process.kill()
        process.wait()


class _Gzip:
    """gzip, also of several members, never holding more than was asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)
        self._waiting = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._inflate.eof:
                self._waiting = self._inflate.unused_data or self._file.read(_CHUNK)
                if not self._waiting.strip(b"\0"):
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)
            elif not self._waiting:
                self._waiting = self._file.read(_CHUNK)
                if not self._waiting:
                    raise InvalidImage("a layer is damaged: it ends in the middle")
            try:
                data = self._inflate.decompress(self._waiting, size)
            except zlib.error as error:
                raise InvalidImage(f"a layer is damaged: {error}") from None
            self._waiting = self._inflate.unconsumed_tail
            if data:
                return data
