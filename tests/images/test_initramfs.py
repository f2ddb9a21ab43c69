"""The initramfs: a valid and reproducible cpio with the agent and the modules."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.images.initramfs import FOLDERS, Entry, build_initramfs, cpio
from belljar.images.kernel_modules import MODULES
from support.kernels import ModuleFolder

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


def test_the_initramfs_has_the_agent_the_modules_and_the_mount_points(tmp_path: Path) -> None:
    kernel = ModuleFolder(tmp_path)
    for name in MODULES:
        kernel.add(name, compressed=True)
    (tmp_path / "agent").write_bytes(b"\x7fELF agent")
    prefork = {"python": b"# waits"}
    archive = build_initramfs(tmp_path / "agent", kernel.modules(), prefork)
    assert build_initramfs(tmp_path / "agent", kernel.modules(), prefork) == archive
    files = {name: (mode, data) for name, mode, data, _ in unpacked(archive)}
    assert files["init"] == (stat.S_IFREG | 0o755, b"\x7fELF agent")
    assert files["prefork/python"] == (stat.S_IFREG | 0o644, b"# waits")
    assert {name for name, (mode, _) in files.items() if stat.S_ISDIR(mode)} == set(FOLDERS)
    modules = sorted(name for name in files if name.startswith("modules/"))
    assert [name.partition("-")[2] for name in modules] == [f"{name}.ko" for name in MODULES]
    assert all(files[name][1].startswith(b"\x7fELF") for name in modules)
