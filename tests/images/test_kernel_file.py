"""Reading a kernel from a file: the ELF image in a bzImage of every compression; other files are reported at once."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar.images.kernel_file import extract_elf, read_kernel_file
from belljar.model.errors import ImageBuildError
from support.kernels import bzimage

ELF = b"\x7fELF" + bytes(range(256)) * 400
SIZE = struct.pack("<I", len(ELF))


def piped(*command: str) -> Callable[[], bytes]:
    def compress() -> bytes:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        return subprocess.run(command, input=ELF, capture_output=True, check=True).stdout + SIZE

    return compress


async def extracted(tmp_path: Path, image: bytes) -> bytes:
    work = tmp_path / "work"
    work.mkdir()
    try:
        return await extract_elf(image, "vmlinuz-6.1", work, tmp_path / "log")
    finally:
        assert list(work.iterdir()) == []


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


async def test_an_elf_kernel_is_unchanged(tmp_path: Path) -> None:
    assert await extracted(tmp_path, ELF) == ELF


async def test_zero_setup_sectors_means_four(tmp_path: Path) -> None:
    assert await extracted(tmp_path, bzimage(gzip.compress(ELF), setup_sectors=0)) == ELF


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is not a bzImage"),
        (b"MZ" + bytes(2000), "is not a bzImage"),
        (bzimage(gzip.compress(ELF), length=1 << 30), "payload of .* is outside the file.* it is cut off or damaged"),
        (bzimage(gzip.compress(ELF), length=0), "payload of .* is outside the file"),
        (bzimage(gzip.compress(ELF)[:-500]), "cannot decompress the kernel"),
        (bzimage(b"\xfd7zXZ\0" + b"junk" * 50), "cannot decompress the kernel"),
        (bzimage(b"BZh9" + b"junk" * 50), "cannot decompress the kernel"),
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


@pytest.mark.parametrize("magic", [gzip.compress, bz2.compress, lzma.compress])
async def test_a_kernel_that_unpacks_to_more_than_the_bound_is_refused(
    tmp_path: Path, magic: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.images.kernel_file.MAX_BYTES", 1 << 16)
    with pytest.raises(ImageBuildError, match="more than 0 MB"):
        await extracted(tmp_path, bzimage(magic(ELF)))


AARCH64 = b"MZ\x40\xfa" + bytes(0x34) + b"ARM\x64" + bytes(1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give the kernel's vmlinux"),
        (b"#!/bin/sh\necho hello\n" * 100, "is text, not a bzImage and not an ELF image"),
        (os.urandom(8) + b"\0\xff" * 500, "is of an unknown format, not a bzImage"),
        (AARCH64, r"is a kernel for aarch64 \(Image\)"),
        (gzip.compress(ELF), "is compressed with gzip; decompress it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "is compressed with zstd; decompress it first"),
        (b"!<arch>\ndebian-binary", "is a package"),
        (b"07070100", "is an initramfs"),
        (b"\x27\x05\x19\x56" + bytes(60), "is a uImage"),
    ],
)
def test_a_file_that_is_no_kernel_is_named_for_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ImageBuildError, match=message) as refused:
        read_kernel_file(path)
    assert str(path) in refused.value.message


def test_a_folder_a_fifo_a_missing_file_and_a_huge_one_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(ELF)
    for path, message in (
        (tmp_path, "is not a file"),
        (tmp_path / "fifo", "is not a file"),
        (tmp_path / "none", "cannot read the kernel .*No such file"),
    ):
        with pytest.raises(ImageBuildError, match=message):
            read_kernel_file(path)
    with pytest.raises(ImageBuildError, match="a kernel has at most"):
        read_kernel_file(tmp_path / "huge", max_bytes=1000)
    assert read_kernel_file(tmp_path / "huge") == ELF
