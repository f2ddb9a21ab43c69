"""The scratch disk: an empty file system of the requested size, without a name."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull
from belljar.node.machines.host.descriptors import devnull
from belljar.node.machines.qemu.scratch import scratch_disk

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs e2fsprogs")


async def test_a_disk_is_a_file_system_of_its_size_and_has_no_name(tmp_path: Path) -> None:
    async with scratch_disk(tmp_path / "scratch", 64) as descriptor:
        assert descriptor is not None
        assert os.fstat(descriptor).st_size == 64 << 20
        assert os.fstat(descriptor).st_nlink == 0
        assert list((tmp_path / "scratch").iterdir()) == []
        assert os.fstat(descriptor).st_blocks * 512 < 4 << 20  # sparse
        superblock = os.pread(descriptor, 1024, 1024)
        assert struct.unpack_from("<H", superblock, 0x38) == (0xEF53,)
        os.pwrite(descriptor, b"x", 50 << 20)
    with pytest.raises(OSError):
        os.fstat(descriptor)


async def test_no_disk_when_none_is_wanted(tmp_path: Path) -> None:
    async with scratch_disk(tmp_path / "scratch", None) as descriptor:
        assert descriptor is None
    assert list(tmp_path.iterdir()) == []


async def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    devnull()  # one for the whole process
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError):
        async with scratch_disk(tmp_path, 16):
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
async def test_a_full_disk_is_an_error_and_leaves_nothing(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file:
        while file.tell() < 252 << 10:  # all but a page
            file.write(bytes(4096))
    with pytest.raises(DiskFull, match="free some space"):
        async with scratch_disk(small_disk, 4096):
            pass
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
