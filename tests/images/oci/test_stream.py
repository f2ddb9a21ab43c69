"""Decompressing layers: every compression, damage, and bombs."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import zlib
from pathlib import Path

import pytest

from belljar.images.oci.stream import ByteBudget, open_layer
from belljar.model.errors import InvalidImage

DATA = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(50_000))


def read(path: Path, max_bytes: int = 1 << 30) -> str:
    with open_layer(path, ByteBudget(max_bytes)) as stream:
        first = stream.read(1000)
        assert first == DATA[:1000]
        return stream.finish()


@pytest.mark.parametrize("kind", ["plain", "gzip", "two gzip members", "zstd"])
def test_every_compression_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "layer"
    if kind == "zstd":
        plain = tmp_path / "plain"
        plain.write_bytes(DATA)
        subprocess.run(["zstd", "-q", str(plain), "-o", str(path)], check=True, timeout=30)
    else:
        half = len(DATA) // 2
        packed = {"plain": DATA, "gzip": gzip.compress(DATA, 1)}
        path.write_bytes(packed.get(kind) or gzip.compress(DATA[:half]) + gzip.compress(DATA[half:]))
    assert read(path) == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_truncated_layer_is_reported(tmp_path: Path, kind: str) -> None:
    path, plain = tmp_path / "layer", tmp_path / "plain"
    plain.write_bytes(DATA)
    if kind == "zstd":
        subprocess.run(["zstd", "-q", str(plain), "-o", str(path)], check=True, timeout=30)
    else:
        path.write_bytes(gzip.compress(DATA, 1))
    path.write_bytes(path.read_bytes()[:-500_000])
    with pytest.raises(InvalidImage, match="damaged"):
        read(path)


def test_a_damaged_layer_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    packed = bytearray(gzip.compress(DATA, 1))
    packed[600_000:600_100] = bytes(100)
    path.write_bytes(packed)
    with pytest.raises(InvalidImage, match="damaged"):
        read(path)


def test_a_bomb_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
    path.write_bytes(packed)
    assert len(packed) < 300_000
    with pytest.raises(InvalidImage, match="ratio over 100"), open_layer(path, ByteBudget(1 << 40)) as stream:
        stream.finish()


def test_all_layers_share_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(DATA)
    budget = ByteBudget(len(DATA) + 1000)
    with open_layer(path, budget) as stream:
        stream.finish()
    with pytest.raises(InvalidImage, match="max_image_mb"), open_layer(path, budget) as stream:
        stream.finish()
