"""Guest memory in files without names: sparse, sealed, and the same when it comes back."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from belljar.model.errors import HostError
from belljar.node.machines.disks import copy_sparse
from belljar.node.machines.qemu.memory import load, new_memory, reopen_read_only, save, seal

SIZE = 64 << 20


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = new_memory(SIZE)
    os.pwrite(descriptor, b"first", 0)
    os.pwrite(descriptor, b"middle", (SIZE >> 1) + 5)
    os.pwrite(descriptor, b"last", SIZE - 4)
    os.pwrite(descriptor, bytes(4096 * 3), 1 << 20)  # touched, and still zeros
    yield descriptor
    os.close(descriptor)


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, SIZE + 1, 0)


def test_saved_memory_loads_again_and_takes_little_room(memory: int, tmp_path: Path) -> None:
    seal(memory)
    save(memory, tmp_path / "memory")
    assert (tmp_path / "memory").stat().st_size == SIZE
    assert (tmp_path / "memory").stat().st_blocks * 512 < 256 * 1024
    again = load(tmp_path / "memory")
    try:
        assert content(again) == content(memory)
    finally:
        os.close(again)


def test_sealed_memory_cannot_change_and_can_be_mapped_privately(memory: int) -> None:
    seal(memory)
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory, SIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    writable = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
    try:
        with mmap.mmap(writable, SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as own:
            own[:5] = b"clone"
        with pytest.raises(PermissionError):
            os.pwrite(writable, b"x", 0)
    finally:
        os.close(writable)
    assert content(memory)[:5] == b"first"


def test_memory_that_is_mapped_for_writing_cannot_be_sealed(memory: int) -> None:
    with mmap.mmap(memory, SIZE) as shared, pytest.raises(HostError):
        shared[0] = 1
        seal(memory)


def test_a_copy_has_the_holes_of_its_original(memory: int, tmp_path: Path) -> None:
    with (tmp_path / "copy").open("w+b") as copy:
        copy_sparse(memory, copy.fileno())
        assert content(copy.fileno()) == content(memory)
    assert (tmp_path / "copy").stat().st_blocks * 512 < 256 * 1024


async def test_a_second_descriptor_reads_from_the_beginning_and_only_reads(memory: int) -> None:
    os.lseek(memory, 100, os.SEEK_SET)
    async with AsyncExitStack() as stack:
        again = reopen_read_only(memory, stack)
        assert os.read(again, 5) == b"first"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(again, b"x")
