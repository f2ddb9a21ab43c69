"""The initramfs: a valid and reproducible cpio, with modules in the order of their dependencies."""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.images.initramfs import FOLDERS, MODULES, Entry, build_initramfs, cpio, module_order
from belljar.model.errors import ImageBuildError

NAMES = st.text(alphabet="abcdef-", min_size=1, max_size=12)


def unpacked(archive: bytes) -> Iterator[tuple[str, int, bytes, list[int]]]:
    """Name, mode, data and all header fields of every entry (buffer-format.rst)."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert archive[start:].strip(b"\0") == b""
            return
        yield name[:-1].decode(), fields[1], archive[start : start + fields[6]], fields
        at = (start + fields[6] + 3) // 4 * 4


@given(st.dictionaries(NAMES, st.binary(max_size=9), max_size=6))
def test_every_file_is_unpacked_unchanged(files: dict[str, bytes]) -> None:
    entries = [Entry(name, stat.S_IFREG | 0o644, data) for name, data in files.items()]
    archive = cpio(entries)
    assert {name: data for name, _, data, _ in unpacked(archive)} == files
    assert cpio(reversed(entries)) == archive


def test_the_archive_has_no_data_of_the_host() -> None:
    archive = cpio([Entry("b", stat.S_IFREG | 0o755, b"x"), Entry("a", stat.S_IFDIR | 0o755)])
    for number, (_, _, _, fields) in enumerate(unpacked(archive), start=1):
        inode, _mode, uid, gid, _links, mtime, _size, *devices, _name, check = fields
        assert (inode, uid, gid, mtime, devices, check) == (number, 0, 0, 0, [0, 0, 0, 0], 0)


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    archive = cpio([Entry("dir", stat.S_IFDIR | 0o755), Entry("dir/file", stat.S_IFREG | 0o644, b"abc")])
    listed = subprocess.run(["cpio", "-t"], input=archive, capture_output=True, check=True).stdout
    assert listed == b"dir\ndir/file\n"


class Kernel:
    """A folder of modules as a kernel package has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "6.1.0-test"
        (self.folder / "kernel/drivers").mkdir(parents=True)
        (self.folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/built-in.ko\n")

    def add(self, name: str, *needs: str, compressed: bool = False, data: bytes = b"\x7fELF") -> None:
        data += b"\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
        path = self.folder / f"kernel/drivers/{name}.ko{'.xz' if compressed else ''}"
        path.write_bytes(lzma.compress(data) if compressed else data)

    def order(self, *names: str) -> list[str]:
        return [path.name.split(".")[0] for path in module_order(self.folder, names)]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_modules_come_once_and_after_their_dependencies(kernel: Kernel) -> None:
    kernel.add("virtio-blk", "virtio", "virtio_ring")
    kernel.add("virtio_ring", "virtio", compressed=True)
    kernel.add("virtio")
    kernel.add("overlay")
    assert kernel.order("virtio_blk", "overlay", "virtio") == ["virtio", "virtio_ring", "virtio-blk", "overlay"]


def test_built_in_modules_are_omitted(kernel: Kernel) -> None:
    kernel.add("overlay", "built_in")
    assert kernel.order("ext4", "overlay") == ["overlay"]


def test_a_missing_module_is_named(kernel: Kernel) -> None:
    kernel.add("overlay", "missing")
    with pytest.raises(ImageBuildError, match=r"6\.1\.0-test has no module missing"):
        kernel.order("overlay")


def test_a_module_of_unknown_compression_is_named(kernel: Kernel) -> None:
    kernel.add("overlay", data=b"\x28\xb5\x2f\xfd")
    with pytest.raises(ImageBuildError, match=r"overlay\.ko has an unknown compression"):
        kernel.order("overlay")


def test_the_initramfs_has_the_agent_the_modules_and_the_mount_points(kernel: Kernel, tmp_path: Path) -> None:
    for name in MODULES:
        kernel.add(name, compressed=True)
    (tmp_path / "agent").write_bytes(b"\x7fELF agent")
    prefork = {"python": b"# waits"}
    archive = build_initramfs(tmp_path / "agent", kernel.folder, prefork)
    assert build_initramfs(tmp_path / "agent", kernel.folder, prefork) == archive
    files = {name: (mode, data) for name, mode, data, _ in unpacked(archive)}
    assert files["init"] == (stat.S_IFREG | 0o755, b"\x7fELF agent")
    assert files["prefork/python"] == (stat.S_IFREG | 0o644, b"# waits")
    assert {name for name, (mode, _) in files.items() if stat.S_ISDIR(mode)} == set(FOLDERS)
    modules = sorted(name for name in files if name.startswith("modules/"))
    assert [name.partition("-")[2] for name in modules] == [f"{name}.ko" for name in MODULES]
    assert all(files[name][1].startswith(b"\x7fELF") for name in modules)
