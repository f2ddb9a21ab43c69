"""A kernel's ELF image: for which processor, which release, what it tells of itself, and where it is damaged."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.images.kernel_elf import KernelElf, kernel_release
from belljar.model.errors import ImageBuildError
from support.kernels import AARCH64, BANNER, PPC64, X86, elf


def read(data: bytes) -> KernelElf:
    return KernelElf(data, "vmlinux", "x86_64")


def test_a_kernel_has_a_release_and_a_pvh_entry() -> None:
    kernel = read(elf())
    assert (kernel.version, kernel.has_pvh_entry) == ("6.1.0-test", True)
    assert not read(elf(note=b"")).has_pvh_entry
    assert not read(elf(note=b"\xff" * 40)).has_pvh_entry


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf(machine=AARCH64), "vmlinux is for aarch64; this host needs a kernel for x86_64"),
        (elf(machine=PPC64, order=2), "is for ppc64, big-endian"),
        (elf(machine=X86, bits=1), "is for x86, 32 bits"),
        (elf(machine=250), "is for machine number 250"),
        (elf(kind=1), "an object file or a kernel module"),
        (elf(interpreter=True), "a program of user space, not a kernel"),
        (elf(b"hello world"), "not a Linux kernel"),
        (elf()[:40], "is cut off"),
        (elf()[:100], "is cut off: it ends before its table"),
        (elf()[:-10], "is cut off: it has .* its segments need"),
        (elf()[:54] + b"\1" + elf()[55:], "no valid table of segments"),
    ],
)
def test_what_is_no_kernel_for_this_host_is_reported(data: bytes, message: str) -> None:
    with pytest.raises(ImageBuildError, match=message):
        read(data)


def test_a_program_of_this_host_is_no_kernel() -> None:
    with pytest.raises(ImageBuildError, match=r"not a kernel|not a Linux kernel"):
        read(Path(sys.executable).read_bytes())


def test_symbols_are_removed_and_do_not_count() -> None:
    kernel = read(elf(symbols=b"virtio_magic\0" * 100))
    assert b"virtio_magic" not in kernel and b"virtio-mmio" in kernel
    stripped = kernel.stripped()
    assert b"virtio_magic" not in stripped and len(stripped) < len(elf()) + 1
    assert read(stripped).stripped() == stripped


def test_the_embedded_configuration_is_read_and_a_damaged_one_ignored() -> None:
    text = "CONFIG_IKCONFIG=y\n# CONFIG_MODULES is not set\n"
    packed = gzip.compress(text.encode())
    assert read(elf(BANNER + b"IKCFG_ST" + packed + b"IKCFG_ED")).configuration() == text
    assert read(elf(BANNER + b"IKCFG_ST" + b"junk" + b"IKCFG_ED")).configuration() is None
    assert read(elf(BANNER + b"IKCFG_ST" + packed)).configuration() is None
    assert read(elf()).configuration() is None


def test_an_image_with_its_table_of_segments_at_its_end_keeps_it_when_it_is_stripped() -> None:
    image = bytearray(elf())
    struct.pack_into("<Q", image, 32, len(image))  # e_phoff
    struct.pack_into("<H", image, 56, 1)  # e_phnum
    image += struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0x1000000, 0, 0, 4096)  # a segment without a byte
    assert read(read(bytes(image)).stripped()).version == "6.1.0-test"


def test_no_more_notes_are_read_than_a_kernel_has() -> None:
    kernel = read(elf(note=bytes(8 << 20)))
    assert sum(1 for _ in kernel._notes()) < 6000


@given(st.data())
def test_a_damaged_image_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    image = bytearray(elf())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, 240))] = data.draw(st.integers(0, 255))
    try:
        kernel = read(bytes(image[: data.draw(st.integers(0, len(image)))]))
    except ImageBuildError:
        return
    assert kernel.has_pvh_entry in (True, False)
    assert kernel.stripped()


def test_the_release_of_a_file_is_found_and_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf())
    (tmp_path / "other").write_bytes(b"\x7fELF")
    assert (kernel_release(tmp_path / "kernel"), kernel_release(tmp_path / "other")) == ("6.1.0-test", "")
