"""Extracting the ELF image from a bzImage of every compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar.images.stock_kernel import extract_elf
from belljar.model.errors import ImageBuildError

ELF = b"\x7fELF" + bytes(range(256)) * 400
SIZE = struct.pack("<I", len(ELF))


def bzimage(payload: bytes, *, setup_sectors: int = 3, offset: int = 17, length: int | None = None) -> bytes:
    """Return a bzImage of the x86 boot protocol: boot sector, setup, code, and the payload at the declared offset."""
    head = bytearray((setup_sectors + 1) * 512 if setup_sectors else 5 * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, offset, len(payload) if length is None else length)
    return bytes(head) + b"\xcc" * offset + payload + b"\xcc" * 100


def piped(*command: str) -> Callable[[], bytes]:
    def compress() -> bytes:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        return subprocess.run(command, input=ELF, capture_output=True, check=True).stdout + SIZE

    return compress


async def extracted(tmp_path: Path, image: bytes) -> bytes:
    source, work = tmp_path / "vmlinuz-6.1", tmp_path / "work"
    source.write_bytes(image)
    work.mkdir()
    await extract_elf(source, tmp_path / "elf", work, tmp_path / "log")
    assert list(work.iterdir()) == []
    return (tmp_path / "elf").read_bytes()


#: As the kernel's scripts/Makefile.lib makes them: all but gzip have the size appended.
PAYLOADS: dict[str, Callable[[], bytes]] = {
    "none": lambda: ELF,
    "gzip": lambda: gzip.compress(ELF),
    "gzip with the size once more": lambda: gzip.compress(ELF) + SIZE,
    "xz": lambda: lzma.compress(ELF) + SIZE,
    "lzma": lambda: lzma.compress(ELF, lzma.FORMAT_ALONE) + SIZE,
    "bzip2": lambda: bz2.compress(ELF) + SIZE,
    "lz4": piped("lz4", "-l", "-c"),
    "zstd": piped("zstd", "-c"),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
async def test_every_compression_gives_the_elf(tmp_path: Path, payload: Callable[[], bytes]) -> None:
    assert await extracted(tmp_path, bzimage(payload())) == ELF


async def test_an_elf_kernel_is_copied_unchanged(tmp_path: Path) -> None:
    assert await extracted(tmp_path, ELF) == ELF


async def test_zero_setup_sectors_means_four(tmp_path: Path) -> None:
    assert await extracted(tmp_path, bzimage(gzip.compress(ELF), setup_sectors=0)) == ELF


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is not a bzImage"),
        (b"MZ" + bytes(2000), "is not a bzImage"),
        (bzimage(gzip.compress(ELF), length=1 << 30), "payload of .* is outside the file"),
        (bzimage(gzip.compress(ELF), length=0), "payload of .* is outside the file"),
        (bzimage(gzip.compress(ELF)[:-500]), "cannot decompress the kernel"),
        (bzimage(b"\xfd7zXZ\0" + b"junk" * 50), "cannot decompress the kernel"),
        (bzimage(b"\x89LZO" + b"junk" * 50), "unknown compression .*894c5a4f"),
        (bzimage(gzip.compress(b"a kernel for another machine")), "not an ELF image"),
    ],
)
async def test_an_invalid_kernel_is_refused(tmp_path: Path, image: bytes, message: str) -> None:
    with pytest.raises(ImageBuildError, match=message):
        await extracted(tmp_path, image)


@pytest.mark.parametrize(("tool", "magic"), [("lz4", b"\x02\x21\x4c\x18"), ("zstd", b"\x28\xb5\x2f\xfd")])
async def test_a_damaged_payload_is_reported_with_the_tools_error(tmp_path: Path, tool: str, magic: bytes) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    with pytest.raises(ImageBuildError, match=f"{tool} failed|not an ELF"):
        await extracted(tmp_path, bzimage(magic + b"junk" * 50))
